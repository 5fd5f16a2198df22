"""What a tree of arrays holds: shape, dtype and a 64-bit fingerprint of every leaf, by its path.

Array files of a checkpoint carry no checksum: a flipped bit comes back as a weight. A fingerprint
is computed on the devices, from the global array, as a sum of mixed words; a sum has no order, so
the sharding does not matter.
"""
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree) -> dict[str, jax.Array]:
    """`params/head/kernel` -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves have one name: a key holds a slash"
    return named


def describe(tree) -> dict[str, dict]:
    """Path -> {"shape", "dtype"} of every leaf, an array or a `jax.ShapeDtypeStruct`."""
    return {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
            for name, leaf in named_leaves(tree).items()}


def manifest(tree) -> dict[str, dict]:
    """Path -> {"shape", "dtype", "fingerprint"} of every leaf, a jax or numpy array; waits for it.

    The fingerprint is 16 hexadecimal digits of the leaf's bits in their order. With several
    processes all of them call, and all get the same.
    """
    sums = jax.device_get({name: _sums(_whole_words(leaf))
                           for name, leaf in named_leaves(tree).items()})
    return {name: entry | {"fingerprint": "".join(f"{lane:08x}" for lane in sums[name])}
            for name, entry in describe(tree).items()}


def compare(expected: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """One line for each difference; where `found` is from `describe`, without fingerprints."""
    lines = [f"{name}: missing, expected {_text(expected[name])}"
             for name in expected.keys() - found.keys()]
    lines += [f"{name}: not expected, found {_text(found[name])}"
              for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        wanted = {key: expected[name][key] for key in found[name]}
        if wanted != found[name]:
            lines.append(f"{name}: expected {_text(wanted)}, found {_text(found[name])}")
    return sorted(lines)


def checksum(record: dict) -> str:
    """16 hexadecimal digits for a record of JSON values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def seal(record: dict) -> dict:
    """The record as JSON gives it back, with its checksum; TypeError for what JSON cannot hold."""
    record = json.loads(json.dumps(record))
    return record | {"checksum": checksum(record)}


def unseal(text: str) -> dict:
    """The record of a sealed text; raises ValueError where a character has changed."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.pop("checksum", None) != checksum(record):
        raise ValueError("the manifest does not match its checksum")
    return record


def _text(entry: dict) -> str:
    shape = ",".join(map(str, entry["shape"]))
    fingerprint = f" {entry['fingerprint']}" if "fingerprint" in entry else ""
    return f"{entry['dtype']}[{shape}]{fingerprint}"


def _whole_words(leaf):
    # 64-bit numpy arrays become pairs of words here: inside jit they would be rounded to 32 bits.
    wide = isinstance(leaf, np.ndarray) and leaf.dtype.itemsize == 8
    return np.ascontiguousarray(leaf).reshape(*leaf.shape, 1).view(np.uint32) if wide else leaf


# Multipliers and shifts of two bijections of a word: MurmurHash3's finalizer, Wellons' lowbias32.
_LANES = ((16, 0x85EBCA6B, 13, 0xC2B2AE35, 16), (16, 0x7FEB352D, 15, 0x846CA68B, 16))


def _mix(x: jax.Array, lane: tuple[int, ...]) -> jax.Array:
    a, m, b, n, c = lane
    x = (x ^ (x >> a)) * jnp.uint32(m)
    x = (x ^ (x >> b)) * jnp.uint32(n)
    return x ^ (x >> c)


@jax.jit
def _sums(x: jax.Array) -> tuple[jax.Array, ...]:
    """Two uint32 sums over the elements of mix(bits ^ mix(index + 1)), modulo 2^32.

    For a given index the term is a bijection of the bits, so a change of one element always changes
    both sums; any other change escapes with a chance of 2^-64.
    """
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    index = jnp.ones(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1:]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    terms = (_mix(bits.astype(jnp.uint32) ^ _mix(index, lane), lane) for lane in _LANES)
    return tuple(jnp.sum(term, dtype=jnp.uint32) for term in terms)
