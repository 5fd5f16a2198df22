"""The files of configs/: every recipe resolves and is assembled, with a prediction for each exit
and width that its paper scores."""
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import vit_efficient
from vit_efficient.engine import state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.seams.phases import Phase

EXITS = {"", "exit1", "exit2", "exit3"}
WIDTHS = {"", "width0.25", "width0.5", "width0.75", "width1"}
# Recipe -> the model and the image size that it stands for, what an evaluation scores.
RECIPES = {
    "asvit:base": ("asvit_base", 224, {""}),
    "deit": ("deit_small_patch16_224", 224, {""}),
    "deit:model=deit_base_distilled_patch16_384": ("deit_base_distilled_patch16_384", 384, {""}),
    "scala": ("deit_small_distilled_patch16_224_scala", 224, WIDTHS),
    "scala:base,13,foundation": ("deit_base_patch16_224_scala", 224, set()),
    "scala:base,4": ("deit_base_distilled_patch16_224_scala", 224, WIDTHS),
    "scala:4,probe=x": ("deit_small_distilled_patch16_224_scala", 224, WIDTHS),
    "dvt": ("DVT_T2t_vit_12", 224, EXITS),
    "dvt:deit_small": ("DVT_Deit_small", 224, EXITS),
    "sret": ("sret_lt", 224, {""}),
    "sret:model=sret_s_wo_slice_distill_512": ("sret_s_wo_slice_distill_512", 512, {""}),
    "svite": ("deit_base_patch16_224", 224, {""}),
    "svite:model=svite_small_patch16_224": ("svite_small_patch16_224", 224, {""})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes with four images each, a batch for the tests' eight devices."""
    root = tmp_path_factory.mktemp("images")
    for split in "train", "val":
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                picture = Image.fromarray(np.full((8, 8, 3), i, np.uint8))
                picture.save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_assembled_and_scores_what_its_paper_scores(recipe, folder):
    name, side, scored = RECIPES[recipe]
    end = f"{',' if ':' in recipe else ':'}imagefolder={folder}"
    run = assemble(vit_efficient.config(recipe + end, {"batch_size": 8}))
    assert (run.config.model.name, run.model.image_size, run.model.num_classes) == (name, side, 2)
    if not scored:
        assert run.objective(Phase()).predictions is None
        return
    weights = states.weights(states.weight_fields(run.abstract_state), "raw")
    found = jax.eval_shape(run.scoring(Phase()), weights,
                           jax.ShapeDtypeStruct((), jnp.int32), run.abstract_batch(8))
    assert found.keys() == scored


def test_a_recipe_without_images_is_that_of_imagenet(tmp_path):
    for recipe in ("asvit", "deit", "scala", "dvt", "sret", "svite"):
        with pytest.raises(ValueError, match="data.name = imagenet2012: is not prepared in "):
            assemble(vit_efficient.config(recipe, {"data.path": str(tmp_path)}))
