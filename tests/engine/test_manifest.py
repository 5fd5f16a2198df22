import json

from hypothesis import assume, given, strategies as st
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vit_efficient.engine.manifest import checksum, compare, describe, manifest, seal, unseal

TYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int8, np.uint8,
         np.bool_, np.float64, np.int64]


def fingerprint(x) -> str:
    return manifest({"x": x})["x"]["fingerprint"]


def slow_fingerprint(x: np.ndarray) -> str:
    """The definition in Python's whole numbers, one element after the other."""
    def mix(value, a, m, b, n, c):
        value = (value ^ value >> a) * m % 2**32
        value = (value ^ value >> b) * n % 2**32
        return value ^ value >> c

    words = np.frombuffer(x.tobytes(), f"u{min(x.dtype.itemsize, 4)}").tolist()
    lanes = (16, 0x85EBCA6B, 13, 0xC2B2AE35, 16), (16, 0x7FEB352D, 15, 0x846CA68B, 16)
    sums = (sum(mix(word ^ mix(i + 1, *lane), *lane) for i, word in enumerate(words))
            for lane in lanes)
    return "%08x%08x" % tuple(total % 2**32 for total in sums)


@st.composite
def arrays_of_bits(draw):
    """Arrays of any of the types and any bits, infinities and denormal numbers among them."""
    dtype, shape = np.dtype(draw(st.sampled_from(TYPES))), draw(st.sampled_from([(3, 5), (4, 1)]))
    if dtype == bool:
        return draw(arrays.arrays(bool, shape))
    return draw(arrays.arrays(f"u{dtype.itemsize}", shape)).view(dtype)


@given(arrays_of_bits())
def test_a_fingerprint_is_its_definition(x):
    assert fingerprint(x) == slow_fingerprint(x)


@given(arrays_of_bits(), st.data())
def test_every_flipped_bit_changes_the_fingerprint(x, data):
    bits = 1 if x.dtype == bool else 8 * x.dtype.itemsize
    flipped = x.copy()
    words = flipped.reshape(-1).view(f"u{x.dtype.itemsize}")
    i, bit = data.draw(st.integers(0, x.size - 1)), data.draw(st.integers(0, bits - 1))
    words[i] ^= words.dtype.type(1 << bit)
    before, after = fingerprint(x), fingerprint(flipped)
    assert before[:8] != after[:8] and before[8:] != after[8:]


@given(arrays_of_bits(), st.data())
def test_every_swap_changes_the_fingerprint(x, data):
    i, j = (data.draw(st.integers(0, x.size - 1)) for _ in "ij")
    swapped = x.copy()
    swapped.flat[i], swapped.flat[j] = x.flat[j], x.flat[i]
    assume(swapped.tobytes() != x.tobytes())
    assert fingerprint(x) != fingerprint(swapped)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 5)])
def test_shapes_and_types(dtype, shape):
    x = np.asarray(np.random.RandomState(0).randint(0, 2, shape)).astype(dtype)
    entry = manifest({"a": [x]})["a/0"]
    assert entry == {"shape": list(shape), "dtype": x.dtype.name,
                     "fingerprint": slow_fingerprint(x)}


def test_the_sharding_does_not_matter():
    x = np.random.RandomState(0).randn(16, 24).astype(np.float32)
    devices = np.array(jax.devices())
    for axes in (8, 1), (1, 8), (2, 4):
        mesh = jax.sharding.Mesh(devices.reshape(axes), ("a", "b"))
        for spec in ("a", "b"), ("b", None), (None, ("a", "b")), ():
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            assert fingerprint(jax.device_put(x, sharding)) == slow_fingerprint(x)


def test_differences_are_named():
    tree = dict.fromkeys(["same", "shape", "type", "bits", "gone"], jnp.ones(3))
    other = tree | {"shape": jnp.ones((3, 1)), "type": jnp.ones(3, jnp.bfloat16),
                    "bits": jnp.zeros(3), "new": jnp.ones(2)}
    del other["gone"]
    lines = compare(manifest(tree), describe(other))
    assert lines == ["gone: missing, expected float32[3] " + fingerprint(jnp.ones(3)),
                     "new: not expected, found float32[2]",
                     "shape: expected float32[3], found float32[3,1]",
                     "type: expected float32[3], found bfloat16[3]"]
    assert [line.split(":")[0] for line in compare(manifest(tree), manifest(other))] == [
        "bits", "gone", "new", "shape", "type"]


def test_a_leaf_that_was_not_read_is_no_array():
    with pytest.raises(TypeError):
        manifest({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_a_sealed_record_is_whole_or_refused():
    metrics = {"top1": float("nan"), "top5": 0.1}
    record = {"leaves": {"x": {"shape": (3,)}}, "metrics": metrics, 7: None}
    text = json.dumps(seal(record))
    assert unseal(text)["leaves"] == {"x": {"shape": [3]}}
    assert checksum(unseal(text)) == seal(record)["checksum"]
    for i in range(len(text)):
        for bit in range(7):
            damaged = text[:i] + chr(ord(text[i]) ^ 1 << bit) + text[i + 1:]
            try:
                # a changed kind of white space
                assert checksum(unseal(damaged)) == seal(record)["checksum"]
            except ValueError:
                pass
        with pytest.raises(ValueError):
            unseal(text[:i])
