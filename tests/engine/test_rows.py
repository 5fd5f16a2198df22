"""What a program says of every image: in order, without padding and bad records."""
from functools import partial

import jax
import numpy as np
import pytest

from tests.runs import small_config
from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.sources import Arrays, Chosen
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.rows import rows


@pytest.fixture(scope="module")
def run():
    return assemble(small_config(batch_size=16))


@jax.jit
def program(batch: dict) -> dict:
    """Numbers that tell one image from another."""
    image = batch["image"].astype("float32")
    return {"mean": image.mean((1, 2, 3)), "corner": image[:, 0, :2, 0]}


class Spoilt(Arrays):
    """Every fifth example is bad, and two of the last batch."""
    max_bad_records = 100

    def __getitem__(self, i: int):
        if i % 5 == 2 or i == 40:
            raise BadImage(f"example {i}")
        return super().__getitem__(i)


def source_of(kind: type, count: int = 41) -> Arrays:
    rng = np.random.default_rng(0)
    return kind(images=rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
                labels=np.arange(count) % 10, classes=tuple("0123456789"), name="noise")


@pytest.mark.parametrize("kind", [Arrays, Spoilt])
@pytest.mark.parametrize("count, size", [(41, 16), (32, 16), (5, 16), (41, 3), (41, 41)])
def test_every_good_example_once_and_in_order(run, kind, count, size):
    source = source_of(kind, count)
    good = [i for i in range(count) if kind is Arrays or i % 5 != 2 and i != 40]
    found = list(rows(run, source, program, batch_size=size,
                      transform=lambda image, size, rng: image))
    assert [batch.end for batch in found] == [*range(size, count, size), count]
    assert np.concatenate([batch.places for batch in found]).tolist() == good
    images = source.images[good].astype(np.float32)
    for name, expected in (("mean", images.mean((1, 2, 3))), ("corner", images[:, 0, :2, 0])):
        said = np.concatenate([batch.said[name] for batch in found])
        np.testing.assert_allclose(said, expected, rtol=1e-6)


def test_a_transform_draws_by_example_and_seed_alone(run):
    """The same draws at any batch size and for any choice of the examples; others by another
    seed."""
    source = source_of(Arrays)

    def drawn(seed: int, size: int, indices=range(41)) -> np.ndarray:
        noise = lambda image, size, rng: np.full((size, size, 3), int(256 * rng.random()), np.uint8)
        found = rows(run, Chosen(source, indices), program, transform=noise, seed=seed,
                     batch_size=size)
        return np.concatenate([batch.said["mean"] for batch in found])
    first = drawn(0, 16)
    np.testing.assert_array_equal(first, drawn(0, 7))
    assert len(set(first.tolist())) > 20 and (first != drawn(1, 16)).mean() > 0.9


def test_chosen_examples_are_a_source():
    source = source_of(Spoilt)
    chosen = Chosen(source, np.array([7, 3, 3]))
    assert (len(chosen), str(chosen), chosen.classes) == (3, "noise", source.classes)
    assert chosen.max_bad_records == 100 and chosen.frames is None
    assert [chosen[i][1] for i in (1, 2)] == [3, 3]
    with pytest.raises(BadImage, match="example 7"):
        chosen[0]


def test_the_evaluation_is_the_default_transform(run):
    source, found = run.data.val, rows(run, run.data.val, partial(jax.jit(lambda b: b["image"])))
    first = next(found)
    found.close()
    expected = [run.augment.evaluate(source[i][0], 32) for i in first.places]
    np.testing.assert_array_equal(first.said, expected)
