"""State_dicts of the authors, there and back, for every model of the zoo."""
from functools import cache
import json
from pathlib import Path

from flax import traverse_util
import jax
import numpy as np
import pytest

from tests.weights.numbers import filled, same
from vit_efficient import registry
from vit_efficient.settings.values import keywords
from vit_efficient.weights import files, interop, names
from vit_efficient.zoo import create_model, list_models

# What a maker of any paper asks for that has no default.
REQUIRED = {"arch": "4,2,2,1|2,1,2,1|2,1,2,2|2,1,2,1|32,32", "width": 32, "depth": 4,
            "num_heads": 2, "mlp_ratio": 2.0}
# Paper -> official files that its fixtures tell of, at least; DeiT's come with SViTE and Scala.
LEAST = {"asvit": 1, "deit": 0, "dvt": 3, "scala": 4, "sret": 5, "svite": 7}
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/*.npz"))


def create(name: str):
    """The model of that name."""
    missing = {key for key, parameter in keywords(registry.variants("models")[name]).items()
               if parameter.default is parameter.empty}
    return create_model(name, **{key: REQUIRED[key] for key in missing})


@cache
def official(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of the official file, in its order."""
    model = create(name)
    return {entry: (place.shape, str(place.dtype))
            for entry, place in interop.layout(model).items()}


@pytest.mark.parametrize("name", list_models())
def test_round_trip_is_bit_for_bit(name):
    model = create(name)
    state_dict = filled(model)
    assert {entry: (array.shape, str(array.dtype))
            for entry, array in state_dict.items()} == official(name)
    variables = interop.from_torch(model, state_dict)
    like = interop.shapes(model)
    assert jax.tree.structure(variables) == jax.tree.structure(like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like)
    assert same(interop.to_torch(model, variables), state_dict)


@cache
def params(file: Path) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """The `params` list of a fixture, None where it has none."""
    with np.load(file, allow_pickle=False) as arrays:
        if "params" not in arrays.files or arrays["params"].dtype.kind != "U":
            return None
        rows = json.loads(str(arrays["params"])) if not arrays["params"].ndim else []
    whole = rows and all(isinstance(row, list) and len(row) == 3 for row in rows)
    return {name: (tuple(shape), dtype) for name, shape, dtype in rows} if whole else None


@cache
def matching(file: Path) -> list[str]:
    """The models of the zoo that have exactly the entries of the fixture, in any order."""
    there = params(file)
    return [name for name in list_models() if there and official(name) == there]


@cache
def whole(paper: str) -> dict[str, Path]:
    """Model of the zoo -> a fixture of the paper that tells of its official file; one model for
    each such file."""
    files_of = {tuple(params(file).items()): file for file in GOLDEN
                if file.parent.name == paper and matching(file)}
    return {matching(file)[0]: file for file in files_of.values()}


@pytest.mark.parametrize("paper", registry.papers())
def test_order_is_that_of_the_authors(paper):
    assert len(whole(paper)) >= LEAST[paper]
    for file in GOLDEN:
        for name in matching(file) if file.parent.name == paper else ():
            assert list(official(name)) == list(params(file)), (file.name, name)


@pytest.mark.parametrize("paper", registry.papers())
def test_a_written_file_loads_strictly_in_torch(paper, tmp_path):
    torch = pytest.importorskip("torch")
    for name, fixture in whole(paper).items():
        model, path = create(name), tmp_path / f"{name}.pth"
        weights = filled(model)
        files.write(path, interop.to_torch(model, interop.from_torch(model, weights)),
                    container="model")
        loaded = torch.load(path, weights_only=True)["model"]
        there = [(entry, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                 for entry, tensor in loaded.items()]
        assert there == [(entry, *rest) for entry, rest in params(fixture).items()], name
        module = shell(torch, params(fixture))
        module.load_state_dict(loaded, strict=True)
        assert all(torch.equal(value, torch.from_numpy(weights[entry]))
                   for entry, value in module.state_dict().items()), name
        path.unlink()


def shell(torch, params):
    """A torch module that has exactly these entries, as zeros."""
    root = torch.nn.Module()
    for name, (shape, dtype) in params.items():
        *modules, last = name.split(".")
        module = root
        for part in modules:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_buffer(last, torch.zeros(shape, dtype=getattr(torch, dtype)))
    return root


@pytest.fixture(scope="module")
def tiny():
    """(model, its state_dict)"""
    model = create_model("deit", num_classes=7, image_size=32, width=8, depth=2, num_heads=2,
                         patch_size=8, distilled=True)
    return model, filled(model)


def test_all_that_does_not_fit_stands_in_one_error(tiny):
    model, state_dict = tiny
    wrong = dict(state_dict)
    del wrong["norm.weight"], wrong["blocks.1.attn.qkv.bias"]
    wrong["extra"] = np.zeros(3)
    wrong["blocks.0.mlp.fc1.weight"] = wrong["blocks.0.mlp.fc1.weight"].T
    wrong["norm.bias"] = wrong["norm.bias"].astype(np.int32)
    wrong["cls_token"] = wrong["cls_token"].astype(np.float64)
    with pytest.raises(ValueError) as error:
        interop.from_torch(model, wrong)
    first, *lines = str(error.value).split("\n  ")
    assert first.endswith("(2 missing, 1 not expected, 2 of another dtype, 1 of another shape):")
    assert lines == ["blocks.0.mlp.fc1.weight: shape (8, 32), must be (32, 8)",
                     "blocks.1.attn.qkv.bias: missing, shape (24,)",
                     "cls_token: dtype float64, must be float32", "extra: not expected",
                     "norm.bias: dtype int32, must be float32", "norm.weight: missing, shape (8,)"]


def test_numbers_that_are_not_finite_are_named(tiny):
    model, state_dict = tiny
    with pytest.raises(ValueError, match="norm.bias: holds numbers that are not finite"):
        interop.from_torch(model, state_dict | {"norm.bias": np.full(8, np.nan, np.float32)})


def test_half_precision_is_widened_and_the_counters_of_thop_are_dropped(tiny):
    model, state_dict = tiny
    half = {name: array.astype(np.float16) for name, array in state_dict.items()}
    half |= {"total_ops": np.zeros(1), "blocks.0.total_params": np.zeros(1)}
    back = interop.to_torch(model, interop.from_torch(model, half))
    assert same(back, {name: half[name].astype(np.float32) for name in state_dict})


def test_a_plain_file_in_a_distilled_model_is_explained(tiny):
    model, state_dict = tiny
    plain = {name: array for name, array in state_dict.items() if "dist" not in name}
    comes = "head_dist comes with model.distilled, which only "
    with pytest.raises(ValueError, match=comes + "this model has"):
        interop.from_torch(model, plain)
    with pytest.raises(ValueError, match=comes + "the file has"):
        interop.from_torch(model.clone(distilled=False), state_dict)


def test_another_class_count_is_refused_unless_asked_for(tiny):
    model, state_dict = tiny
    other = model.clone(num_classes=5)
    with pytest.raises(ValueError, match=r"(?s)head.weight: shape \(7, 8\), must be \(5, 8\)"
                                         r".*adapt = \('classes',\)"):
        interop.from_torch(other, state_dict)
    params = interop.from_torch(other, state_dict, adapt=("classes",), seed=1)["params"]
    again = interop.from_torch(other, state_dict, adapt=("classes",), seed=1)["params"]
    assert params["head"]["kernel"].shape == (8, 5) and params["head"]["kernel"].std() > 0
    assert (params["head"]["kernel"] == again["head"]["kernel"]).all()
    assert (params["norm"]["bias"] == state_dict["norm.bias"]).all()
    # Only a head may differ, and only by its class count.
    with pytest.raises(ValueError, match="norm.bias: shape"):
        interop.from_torch(other, state_dict | {"norm.bias": np.zeros(9, "f4")}, adapt=("classes",))
    with pytest.raises(ValueError, match="head.weight: shape"):
        interop.from_torch(other, state_dict | {"head.weight": np.zeros((7, 9), "f4")},
                           adapt=("classes",))


def test_heads_start_anew_where_it_is_asked_for(tiny):
    model, state_dict = tiny
    params = interop.from_torch(model, state_dict, adapt=("heads",), seed=1)["params"]
    for name in "head", "head_dist":
        assert (params[name]["kernel"] != state_dict[f"{name}.weight"].T).all()
    assert (params["norm"]["bias"] == state_dict["norm.bias"]).all()
    with pytest.raises(ValueError, match="head.weight: shape"):
        interop.from_torch(model, state_dict | {"head.weight": np.zeros((7, 9), "f4")},
                           adapt=("heads",))


def test_a_head_is_left_out_for_a_model_without_classes():
    with_head = create_model("asvit_tiny", num_classes=3, image_size=32)
    without = create_model("asvit_tiny", num_classes=0, image_size=32)
    state_dict = filled(with_head)
    with pytest.raises(ValueError, match="head.2.weight: not expected"):
        interop.from_torch(without, state_dict)
    params = interop.from_torch(without, state_dict, adapt=("classes",))["params"]
    assert "head_2" not in params and "head_0" in params
    back = interop.from_torch(with_head, interop.to_torch(without, {"params": params}),
                              adapt=("classes",))["params"]
    assert back["head_2"]["kernel"].shape == (256, 3)


def test_another_image_size_resizes_the_position_table(tiny):
    model, state_dict = tiny
    other = model.clone(image_size=48)
    with pytest.raises(ValueError, match=r"pos_embed: shape \(1, 18, 8\), must be \(1, 38, 8\)"):
        interop.from_torch(other, state_dict)
    table = interop.from_torch(other, state_dict, adapt=("image_size",))["params"]["pos_embed"]
    np.testing.assert_array_equal(table[:, :2], state_dict["pos_embed"][:, :2])
    flat = state_dict | {"pos_embed": np.ones((1, 18, 8), np.float32)}
    constant = interop.from_torch(other, flat, adapt=("image_size",))["params"]["pos_embed"]
    np.testing.assert_allclose(constant, 1, atol=1e-6)
    with pytest.raises(ValueError, match="pos_embed: shape"):
        interop.from_torch(other, state_dict | {"pos_embed": np.ones((1, 21, 8), np.float32)},
                           adapt=("image_size",))


def test_a_selector_starts_anew_beside_the_weights_of_a_deit():
    sizes = dict(num_classes=7, image_size=32, width=8, depth=2, num_heads=2, patch_size=8)
    state_dict = filled(create_model("deit", **sizes))
    model = create_model("svite", **sizes, token_selection="layers", token_number=5)
    with pytest.raises(ValueError, match=r"(?s)\(6 missing\).*blocks.0.attn.gumbel.bias: missing"):
        interop.from_torch(model, state_dict)
    back = interop.to_torch(model, interop.from_torch(model, state_dict, adapt=("parts",)))
    assert {name for name in back.keys() - state_dict.keys()} == {
        f"{part}gumbel.{end}" for part in ("", "blocks.0.attn.", "blocks.1.attn.")
        for end in ("weight", "bias")}
    assert all((back[name] == array).all() for name, array in state_dict.items())
    assert back["gumbel.weight"].std() > 0
    del state_dict["norm.weight"]
    with pytest.raises(ValueError, match=r"\(1 missing\):\n  norm.weight"):
        interop.from_torch(model, state_dict, adapt=("parts",))


def test_position_tables_are_resized_as_torch_does():
    torch = pytest.importorskip("torch")
    table = np.random.RandomState(0).randn(1, 2 + 49, 5).astype(np.float32)
    for side in (4, 7, 10):
        grid = torch.from_numpy(table[:, 2:].reshape(1, 7, 7, 5).transpose(0, 3, 1, 2))
        expected = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic").numpy()
        found = interop.resize_positions(table, (1, 2 + side ** 2, 5))
        np.testing.assert_allclose(np.asarray(found)[:, 2:].reshape(1, side, side, 5),
                                   expected.transpose(0, 2, 3, 1), atol=2e-6)


def test_unknown_adaptations_are_refused(tiny):
    for adapt in ("classes", ("head",)):
        with pytest.raises(ValueError, match="adapt = .*: may hold classes, heads, image_size, "
                                             "parts"):
            interop.from_torch(*tiny, adapt=adapt)


class Shared:
    """A model's declarations alone: the array at b/kernel stands in the file twice."""
    order = ("a", "b")

    @staticmethod
    def official_names(path):
        return ("b.0.weight", "b.1.weight") if path[0] == "b" else (names.official(path),)


def test_an_array_that_the_file_lists_twice_is_one_array():
    variables = {"params": {"b": {"kernel": np.eye(2)}, "a": {"bias": np.ones(2)}}}
    state_dict = interop.to_torch(Shared, variables)
    assert list(state_dict) == ["a.bias", "b.0.weight", "b.1.weight"]
    assert state_dict["b.0.weight"] is state_dict["b.1.weight"]


@pytest.mark.parametrize("path, array, name, shape", [
    (("layers_0", "mlps_0_1", "fc1", "kernel"), (2, 3), "layers.0.mlps.0.1.fc1.weight", (3, 2)),
    (("patch_embed", "proj", "kernel"), (8, 7, 3, 5), "patch_embed.proj.weight", (5, 3, 8, 7)),
    (("norm", "scale"), (4,), "norm.weight", (4,)),
    (("bn1", "mean"), (4,), "bn1.running_mean", (4,)),
    (("bn1", "var"), (4,), "bn1.running_var", (4,)),
    (("pos_embed",), (1, 2, 3, 4), "pos_embed", (1, 4, 2, 3)),
    (("pos_embed",), (1, 6, 4), "pos_embed", (1, 6, 4)),
])
def test_one_rule_names_and_turns_every_array(path, array, name, shape):
    values = np.arange(np.prod(array), dtype=np.float32).reshape(array)
    assert names.official(path) == name and names.to_official(path, values).shape == shape
    assert (names.from_official(path, names.to_official(path, values)) == values).all()


def test_variables_hold_no_views_of_traced_arrays(tiny):
    model, state_dict = tiny
    leaves = traverse_util.flatten_dict(interop.from_torch(model, state_dict))
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
