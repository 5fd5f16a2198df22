"""SViTE's fixtures, of the authors' code: models, masks, densities, selectors, checkpoints."""
import inspect
import re
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.fill import image
from tests.golden.reader import Fixture, Tracked
from vit_efficient import zoo
from vit_efficient.engine import optim
from vit_efficient.papers.svite import masks as mask_files
from vit_efficient.papers.svite.densities import Shapes, densities, maskable
from vit_efficient.papers.svite.models import SViTE, svite
from vit_efficient.weights import files, interop

ATOL = 2e-5         # ours are 5e-6 off in the largest models
RTOL = 1e-5         # of tokens inside a model
WEIGHT_DECAY = inspect.signature(optim.make_optimizer).parameters["weight_decay"].default
SELECTION = {"vision_transformer": "input", "vision_transformer_data": "layers", "vision2": None,
             "vision_gumbel": "first", "vision_gumbel_structure": "first"}


def sized(config: Tracked, token_number: int | None) -> SViTE:
    """The model of the sizes that stand beside its name."""
    heads = config["num_heads"]
    assert config["attention_dim"] % heads == 0
    return svite(config["num_classes"], config["img_size"], width=config["embed_dim"],
                 depth=config["depth"], num_heads=heads,
                 head_width=config["attention_dim"] // heads, mlp_hidden=config["mlp_hidden"],
                 patch_size=config["patch_size"], token_number=token_number,
                 token_selection=SELECTION[config["module"]])


def toy(config: Tracked, token_number: int | None) -> SViTE:
    """The small model of a `toy`, with a selector if it has a `token_number`."""
    width = config["embed_dim"]
    return svite(config["num_classes"], config["img_size"], width=width, depth=config["depth"],
                 num_heads=config["num_heads"], mlp_hidden=int(width * config["mlp_ratio"]),
                 patch_size=config["patch_size"], qkv_bias=config["qkv_bias"],
                 token_number=token_number, token_selection="input" if token_number else None)


def model_of(config: Tracked) -> nn.Module:
    """The zoo's model where it has the name, which must be the one of the sizes; else that one."""
    token_number = config.get("token_number")
    made, name = sized(config, token_number), config["model"]
    if token_number and SELECTION[config["module"]] == "input":
        name = re.sub("^deit", "svite", name)
    if name not in zoo.list_models():
        return made
    options = {"token_number": token_number} if token_number else {}
    named = zoo.create_model(name, num_classes=made.num_classes, image_size=made.image_size,
                             **options)
    assert module_of(named) == config["module"] and named.macs() == made.macs()
    assert named == made or not isinstance(named, SViTE) and named.num_heads == made.num_heads
    return named


def shapes_of(model: nn.Module) -> Shapes:
    """Official name -> shape in torch's layout, in the order of the official file."""
    return {name: place.shape for name, place in interop.layout(model).items()}


def load(fixture: Fixture, model: nn.Module, state_dict: dict[str, np.ndarray]) -> dict:
    """The model's variables; they must give back the file, in its order."""
    variables = interop.from_torch(model, state_dict)
    back = interop.to_torch(model, variables)
    assert [(name, array.shape, str(array.dtype)) for name, array in back.items()] == [
        (name, *kind) for name, kind in fixture.params().items()]
    assert all(np.array_equal(array, state_dict[name]) for name, array in back.items())
    return variables


def images_of(config: Tracked) -> np.ndarray:
    return image(**config["image"].plain())


def gumbel_noise(text: str, model: SViTE, batch: int) -> np.ndarray:
    """The Gumbel noise [draws, B, N] that a recipe in words describes."""
    seed, *shape = re.match(r"E = RandomState\((\d+)\)\.standard_exponential\(\((\d+), (\w+), (\d+)"
                            r"\)\)\.astype\(float32\)", text).groups()
    shape = [batch if size == "batch" else int(size) for size in shape]
    return -np.log(np.random.RandomState(int(seed)).standard_exponential(shape).astype(np.float32))


def stages(model: nn.Module, variables: dict, images: np.ndarray) -> tuple[jax.Array, dict]:
    """Logits, and the tokens of each stage under the name that a probe gives it."""
    def run(variables, images):
        seen = {}

        def watch(call, args, kwargs, context):
            out, path = call(*args, **kwargs), context.module.path
            if path == ("blocks_0",):
                seen["embed (tokens entering block 0)"] = tokens(args[0])
            if len(path) == 1 and path[0].startswith("blocks_"):
                seen[f"after block {path[0].removeprefix('blocks_')}"] = tokens(out)
            if path == ("norm",):
                seen["after final norm"] = out
            return out

        with nn.intercept_methods(watch):
            return model.apply(variables, images), seen
    return jax.jit(run)(variables, images)


def tokens(stream) -> jax.Array:
    return getattr(stream, "x", stream)


def check_bfloat16(model: nn.Module, variables: dict, images: np.ndarray, logits: np.ndarray):
    """The root mean square difference must stay below a twentieth of the logits' deviation."""
    half = jax.jit(model.clone(dtype=jnp.bfloat16, scan=True).apply)(variables, images[:1])
    logits = logits[:1]
    assert np.sqrt(np.mean((half - logits) ** 2)) < 0.05 * np.std(logits)


def logits_file(fixture: Fixture) -> None:
    """dense, compact and truncate: a whole model's logits, and what a probe saw."""
    config = fixture.config
    assert config["mode"] == "eval"
    model, images = model_of(config), images_of(config)
    variables = load(fixture, model, fixture.state_dict())
    assert config["param_count"] == sum(x.size for x in jax.tree.leaves(variables))
    # Only blocks that run one by one can be watched; a scan compiles one of them.
    logits, seen = stages(model.clone(scan="probe" not in config), variables, images)
    fixture.expect("logits", logits, atol=ATOL)
    if "probe" in config:
        probe = config["probe"]
        chosen = np.array(probe["tokens"].plain())
        # numpy's arrays: jax would take the last token for one that is not there
        found = [np.asarray(seen[name])[:, chosen] for name in probe["stages"]]
        fixture.expect("probe", np.stack(found), atol=ATOL, rtol=RTOL)
    check_bfloat16(model, variables, images, np.asarray(logits))


def masks_of(config: Tracked, shapes: Shapes) -> mask_files.Masks:
    """The masks of a masked file, with every number that it tells of them."""
    shapes = maskable(shapes)
    found = densities(config.get("sparse_init", "fixed_ERK"), shapes, config["density"])
    expected = config["densities"].plain()
    assert list(expected) == list(shapes)
    np.testing.assert_allclose(list(found.of.values()), list(expected.values()), rtol=1e-12)
    made = {}
    for name, shape in shapes.items():
        stream = np.random.RandomState(zlib.crc32(f"{name}.mask_u".encode()))
        made[name] = mask_files.drawn(stream.random_sample(shape).astype(np.float32),
                                      found.of[name])
    assert config["active"].plain() == {name: int(mask.sum()) for name, mask in made.items()}
    if "crc32_of_packbits" in config:
        assert config["crc32_of_packbits"].plain() == {
            name: zlib.crc32(np.packbits(mask).tobytes()) for name, mask in made.items()}
    return made


def masked_file(fixture: Fixture) -> None:
    """masked: densities, masks drawn by the rule, logits of the masked model."""
    config = fixture.config
    assert config["mode"] == "eval"
    model, state_dict = model_of(config), fixture.state_dict()
    assert config["param_count"] == sum(x.size for x in state_dict.values())
    made = masks_of(config, {name: array.shape for name, array in state_dict.items()})
    variables = load(fixture, model, mask_files.apply(state_dict, made))
    apply = jax.jit(model.clone(scan=True).apply)
    fixture.expect("logits", apply(variables, images_of(config)), atol=ATOL)


def token_file(fixture: Fixture) -> None:
    """token: what every selector decides at fixed noise, and the logits."""
    config = fixture.config
    assert config["mode"] == "eval"
    model, state_dict, images = model_of(config), fixture.state_dict(), images_of(config)
    assert config["param_count"] == sum(x.size for x in state_dict.values())
    if "density" in config:
        made = masks_of(config, {name: array.shape for name, array in state_dict.items()})
        state_dict = mask_files.apply(state_dict, made)
    variables = load(fixture, model, state_dict)
    noise = gumbel_noise(config["noise"], model, len(images))
    runs = model.clone(scan=model.draws == 1)       # else the blocks' selectors are wanted
    logits, seen = jax.jit(lambda *args: runs.apply(
        *args, tau=config["tau"], noise=noise, mutable="intermediates"))(variables, images)
    fixture.expect("logits", logits, atol=ATOL)
    seen = seen["intermediates"]
    found = [seen["gumbel"]["selection"][0]]
    found += [seen[f"blocks_{i}"]["attn"]["gumbel"]["selection"][0] for i in range(model.draws - 1)]
    log_prob, soft, topk, mask, _ = (np.stack(arrays) for arrays in zip(*found))
    fixture.expect("log_prob", log_prob, atol=ATOL)
    fixture.expect("soft", soft[:1], atol=1e-6)
    fixture.expect("topk", topk)
    fixture.expect("mask", mask)
    assert config["class_token_in_topk"].plain() == topk[..., 0].tolist()
    assert config["kept_per_image"].plain() == mask.sum(-1).tolist()
    ranked, k = np.sort(log_prob + noise)[..., ::-1], model.token_number
    np.testing.assert_allclose(config["margin_between_k_and_k_plus_1"],
                               (ranked[..., k - 1] - ranked[..., k]).min(), atol=ATOL)


def erk_file(fixture: Fixture) -> None:
    """erk: densities of every size, mode and density."""
    table = fixture.text("table")
    for size, rows in table.items():
        shapes = maskable(shapes_of(zoo.create_model(f"deit_{size}_patch16_224")))
        assert fixture.config["densities"].plain() == [float(density) for density in rows]
        for density, row in rows.items():
            assert row["maskable_tensors"] == len(shapes)
            assert row["maskable_params"] == sum(np.prod(shape) for shape in shapes.values())
            for mode in set(row) - {"maskable_tensors", "maskable_params"}:
                compare_densities(row[mode], densities(mode, shapes, float(density)), shapes)


def compare_densities(expected: Tracked, found, shapes: Shapes) -> None:
    """All numbers of one mode at one density, to rounding in float64."""
    assert expected["density"].plain().keys() == found.of.keys()
    for name, density in expected["density"].items():
        np.testing.assert_allclose(density, found.of[name], rtol=1e-12)
    assert expected["dense_layers"].plain() == found.dense
    np.testing.assert_allclose(expected["overall"], found.overall(shapes), rtol=1e-12)
    if "epsilon" in expected:
        np.testing.assert_allclose(expected["epsilon"], found.epsilon, rtol=1e-12)


def with_selector(name: str) -> nn.Module:
    """The zoo's model of the official name with its selectors on; of the distilled ones, whose
    forward pass is broken in the official code, the one of their sizes."""
    own = re.sub(r"^deit_(\w+?)(_distilled)?_patch16_(\d+)$", r"svite_\1_patch16_\3", name)
    return zoo.create_model(own, token_number=1)


def module_of(model: nn.Module) -> str:
    """The official file that holds the class of the model."""
    if getattr(model, "distilled", False):
        return "models"
    if not isinstance(model, SViTE):
        return "vision_transformer"
    compact = model.num_heads * model.head_width < model.width
    return {"layers": "vision_transformer_data", "input": "vision_transformer",
            "first": "vision_gumbel_structure" if compact else "vision_gumbel",
            None: "vision2"}[model.token_selection]


def meta_file(fixture: Fixture) -> None:
    """meta: parameters and multiply-adds of every variant, decay groups, names of masks."""
    count = lambda shapes: sum(int(np.prod(shape)) for shape in shapes.values())
    for name, expected in fixture.text("variants").items():
        model = zoo.create_model(name)
        shapes = shapes_of(model)
        assert expected["module"] == module_of(model)
        assert expected["entries"] == len(shapes)
        assert expected["params"] == count(shapes)
        selector = {}
        if SELECTION.get(expected["module"], "input") in ("input", "layers"):
            selector = {entry: shape for entry, shape in shapes_of(with_selector(name)).items()
                        if "gumbel" in entry}
        assert expected["selector_params"] == count(selector)
        if "macs" in expected:
            assert expected["macs"] == sum(model.macs().values())
    check_groups(fixture.config["optimizer_groups"], fixture.text("optimizer_groups"))
    check_mask_keys(fixture.config["mask_keys"], fixture.text("mask_keys"))
    assert "MACs" in fixture.config["variants"]


def check_groups(words: str, groups: Tracked) -> None:
    """Weight decay of each parameter, in the order of the file."""
    name, selector = re.fullmatch(r"AdamW groups of (\w+) (with|without) selector, in order",
                                  words).groups()
    model = with_selector(name) if selector == "with" else zoo.create_model(name)
    params = interop.shapes(model)["params"]
    decays = interop.to_torch(model, {"params": jax.tree.map(
        lambda shape, decays: np.broadcast_to(decays, shape.shape), params,
        optim.decays(model.no_decay)(params))})
    # the authors' trainer: first what does not decay
    assert [group["weight_decay"] for group in groups] == [0.0, WEIGHT_DECAY]
    for group, wanted in zip(groups, (False, True)):
        assert group["names"].plain() == [
            name for name, array in decays.items() if array.flat[0] == wanted]


def check_mask_keys(words: str, expected: Tracked) -> None:
    """The names of the masks in a checkpoint of a distributed run."""
    name = re.fullmatch(r"keys of the mask dictionaries in a checkpoint written by a distributed "
                        r"run of (\w+)", words)[1]
    plain, selecting = (shapes_of(model) for model in (zoo.create_model(name),
                                                       with_selector(name)))
    unstructured = [mask_files.official_keys(shapes, structured=False)["mask"]
                    for shapes in (plain, selecting)]
    structured = mask_files.official_keys(plain, structured=True)
    found = {"mask_plain": unstructured[0], "mask_selector": unstructured[1],
             "other_mask": structured["other_mask"], "atten_mask": structured["atten_mask"]}
    assert expected.plain() == {group: list(keys.values()) for group, keys in found.items()}


def checkpoint_file(fixture: Fixture) -> None:
    """checkpoint: a file of the official trainer, its masks and the logits of both models."""
    config = fixture.config
    file = files.read(fixture.folder / config["file"])
    assert list(file) == config["top_level"].plain()
    assert file["mask_step"] == config["mask_step"]
    args, selector = file["args"], config["selector"]
    structured = {"unstructure": False, "structure_new": True}[config["pruning_type"]]
    assert (args["token_selection"], args["token_number"], args["pruning_type"]) == (
        selector, config["token_number"], config["pruning_type"])
    model = toy(config["toy"], config["token_number"] if selector else None)
    keys = mask_files.official_keys(shapes_of(model), structured=structured)
    for group, own in keys.items():
        assert config[f"{group}_keys"].plain() == list(file[group]) == list(own.values())
    assert config["fired_mask_keys"].plain() == list(file["fired_mask"])
    masks = mask_files.decode(file, file["model"])
    fired = mask_files.decode(file, file["model"], fired=True)
    assert fired.keys() == masks.keys()
    assert all((fired[name] >= mask).all() for name, mask in masks.items())
    assert fixture.matching("mask/*") == [f"mask/{name}" for name in masks]
    for name, mask in masks.items():
        fixture.expect(f"mask/{name}", np.packbits(mask))
    assert config["heads_active"].plain() == {
        name: mask_files.active_heads(masks[name], model.head_width)
        for name in keys["atten_mask"]}
    images = images_of(config)
    noise = gumbel_noise(config["noise"], model, len(images))
    options = {"noise": noise, "tau": config["tau"]} if selector else {}
    assert selector or config["tau"]
    run = jax.jit(lambda *args: model.apply(*args, **options))
    for entry, name in (("model", "logits"), ("model_ema", "logits_ema")):
        state_dict = {key: np.asarray(array) for key, array in file[entry].items()}
        fixture.expect(name, run(load(fixture, model, state_dict), images), atol=ATOL)


CHECKS = {"dense": logits_file, "compact": logits_file, "truncate": logits_file,
          "masked": masked_file, "token": token_file, "erk": erk_file, "meta": meta_file,
          "checkpoint": checkpoint_file}
LATER = dict.fromkeys((
    "update", "trajectory_unstructured", "trajectory_structured", "schedule", "s2vite",
    "s2vite_update", "s2vite_scores", "token_gradients"), "the SViTE issue")
