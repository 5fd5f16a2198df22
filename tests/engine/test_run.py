"""What does not fit together in a config is found when a run is assembled."""
import jax
import numpy as np
import pytest

from tests.runs import small_config
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs.train import train
from vit_efficient.weights import files, interop
from vit_efficient.zoo import create_model


@pytest.mark.parametrize("changes, message", [
    ({"batch_size": 2000}, "batch_size = 2000: the training set has only 1438 images"),
    ({"epochs": 0.01}, "epochs = 0.01: less than one step of 64 images"),
    ({"batch_size": 60}, "batch_size = 60: must be a multiple of 8"),
    ({"data__image_size": 40}, "data.image_size = 40: As-ViT needs a multiple of 32"),
    ({"model__arch": "4,1,1|2,1|2,1,1|2,1,1|8"}, "model.arch = .*stage 2"),
    ({"mesh__fsdp": 3}, "mesh.fsdp = 3: .* 8 devices"),
    ({"phases__schedule": "p18", "epochs": 4.0}, "phases.schedule = p18: 4 epochs are too few"),
    ({"teacher__workdir": "nowhere"}, "nowhere holds no config.json"),
    ({"data__source": "imagefolder", "data__path": "nowhere"}, "data.path = 'nowhere'")])
def test_a_config_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        assemble(small_config(**changes))


def test_training_without_its_teacher_is_refused_before_anything_is_written(tmp_path):
    config = small_config(objective__name="soft_labels")
    with pytest.raises(ValueError, match="objective.name = soft_labels: needs a teacher"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_a_file_and_a_name(tmp_path):
    for changes, message in (({"teacher__init_from": "x.pth"}, "they go together"),
                             ({"teacher__init_from": "x.pth", "teacher__model": "deit_small"},
                              "teacher.model = deit_small: did you mean"),
                             ({"teacher__init_from": str(tmp_path / "x.pth"),
                               "teacher__model": "deit"}, "teacher.init_from = .*x.pth")):
        with pytest.raises(ValueError, match=message):
            assemble(small_config(objective__name="soft_labels", **changes))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(the keys of a teacher from a file, its weights)"""
    model = create_model("asvit_tiny", num_classes=10, image_size=32)
    variables = jax.jit(model.init)(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    files.write(path, interop.to_torch(model, variables))
    return dict(teacher__model="asvit_tiny", teacher__init_from=str(path)), variables["params"]


def test_a_teacher_from_a_file_has_its_weights(teacher):
    keys, params = teacher
    run = assemble(small_config(objective__name="soft_labels", **keys))
    jax.tree.map(np.testing.assert_array_equal, run.frozen()["teacher"]["params"], params)
    assert not run.objective(run.phases.phase_at(0)).missing and run.fingerprint()


def test_a_teacher_that_nobody_reads_is_refused_with_the_objectives_that_would(teacher, tmp_path):
    keys, _ = teacher
    with pytest.raises(ValueError) as error:
        train(small_config(**keys), tmp_path / "run")
    assert str(error.value) == (
        f"teacher.init_from = {keys['teacher__init_from']}: objective.name = supervised reads no "
        "teacher, leave it empty or take one of distilled, soft_labels")
    assert not (tmp_path / "run").exists()


def test_mixing_an_odd_batch_is_refused(monkeypatch):
    # eight devices here
    monkeypatch.setattr("vit_efficient.engine.sharding.check_batch", lambda *a: None)
    with pytest.raises(ValueError, match="batch_size = 63: must be even"):
        assemble(small_config(batch_size=63, augment__mixup=0.8))


def test_a_step_of_the_full_recipe():
    """Traced: labels become distributions inside, and every metric is there."""
    run = assemble(small_config(augment__mixup=0.8, augment__cutmix=1.0, augment__erase=0.25,
                                augment__randaugment=9.0, augment__repeats=3))
    assert run.phases.position(3).repeats == 3
    phase = run.phases.phase_at(0)
    batch = run.abstract_batch(64, phase)
    mixed = jax.eval_shape(lambda b: run.augment.on_device(b, jax.random.key(0), 10), batch)
    assert mixed["label"].shape == (64, 10) and batch["label"].shape == (64,)
    state, metrics = jax.eval_shape(run.step(phase), run.abstract_state, run.frozen(), batch)
    assert {"loss", "top1"} <= set(metrics["metrics"])
    assert jax.tree.structure(state) == jax.tree.structure(run.abstract_state)


def test_progressive_needs_a_model_with_a_stride():
    import vit_efficient
    config = vit_efficient.config("asvit:digits", {"model.name": "deit", "model.patch_size": 8})
    with pytest.raises(ValueError, match="phases.name = progressive: needs a model"):
        assemble(config)


@pytest.mark.parametrize("model", ["asvit_small", "deit_small_patch16_224"])
def test_fsdp_shards_nearly_every_byte_of_the_state(model):
    """Parameters, moments and EMA of real models: at least 90 % of the bytes, on 8 devices."""
    from flax import linen as nn
    import numpy as np

    from vit_efficient import zoo
    from vit_efficient.engine import optim, sharding, state
    from vit_efficient.seams.phases import Length
    from vit_efficient.seams.sparsity import dense
    made: nn.Module = zoo.create_model(model)
    optimizer = optim.make_optimizer(Length(64, 8, 1), made.no_decay, lr=1e-3)

    def create():
        variables = made.init(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
        return state.create(0, variables, optimizer, dense(None, None), ema=True)

    leaves = jax.tree.leaves(sharding.abstract(sharding.make_mesh(fsdp=8), jax.eval_shape(create)))
    size = {True: 0, False: 0}
    for leaf in leaves:
        split = np.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == np.prod(leaf.shape)
        size[bool(split)] += int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    assert size[True] > 0.9 * sum(size.values())
