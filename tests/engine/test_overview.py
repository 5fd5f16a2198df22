"""Parameters and multiply-adds of every model of the zoo, as measured on the authors' code; what a
run says of itself."""
from functools import partial
import re

import pytest
from pytest import approx

from tests.runs import small_config
from vit_efficient import registry
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.overview import overview, table
from vit_efficient.zoo import create_model

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
# Name -> parameters, multiply-adds; a float is giga, rounded.
ASVIT = {                                                       # the authors' class and counter
    "asvit_small": (29_051_296, 5_132_481_024), "asvit_base": (52_622_428, 8_754_150_656),
    "asvit_large": (88_145_300, 22_358_480_640)}
DEIT = {                                                        # SViTE's code
    "deit_tiny_patch16_224": (5_717_416, 1_253_683_200),
    "deit_small_patch16_224": (22_050_664, 4_598_882_304),
    "deit_base_patch16_224": (86_567_656, 17_563_828_224),
    "deit_base_patch16_384": (86_859_496, 55_484_350_464)}
SVITE = {re.sub("^deit", "svite", name): counts for name, counts in DEIT.items()} | {
    "deit_tiny_patch16_224_half": (2_158_504, 437_289_984),
    "deit_tiny_patch16_224_8layers": (3_937_960, 845_486_592),
    "deit_small_patch16_224_half": (11_403_880, 2_328_534_528),
    "deit_base_patch16_224_half": (44_040_424, 8_840_100_864),
    **{f"{name}_data": counts for name, counts in DEIT.items() if "384" not in name},
    "deit_tiny_patch16_224_70": (4_205_524, 897_229_824),
    "deit_small_patch16_224_70": (16_022_476, 3_294_105_600),
    "deit_small_patch16_224_60": (14_601_364, 3_014_510_592),
    "deit_small_patch16_224_50": (12_302_440, 2_502_827_520),
    "deit_small_patch16_224_40": (9_994_288, 1_989_328_896),
    "deit_small_patch16_224_30": (8_573_176, 1_709_733_888),
    "deit_base_patch16_224_70": (62_475_184, 12_583_163_904),
    "deit_base_patch16_224_60": (56_812_876, 11_468_414_976),
    "deit_base_patch16_224_50": (47_607_016, 9_537_272_832),
    "deit_base_patch16_224_40": (38_382_712, 7_602_499_584),
    "deit_base_patch16_224_30": (32_720_404, 6_487_750_656),
    "deit_small_patch16_224_gumbel": (22_050_664, 4_598_882_304),
    "deit_small_patch16_224_60_gumbel": (14_601_364, 3_014_510_592)}
SELECTORS = {                                                   # the same, their extra parameters
    "svite_tiny_patch16_224": 193, "svite_small_patch16_224": 385, "svite_base_patch16_224": 769,
    "svite_base_patch16_384": 769, "deit_tiny_patch16_224_half": 193,
    "deit_tiny_patch16_224_8layers": 193, "deit_small_patch16_224_half": 385,
    "deit_base_patch16_224_half": 769, "deit_tiny_patch16_224_data": 2_509,
    "deit_small_patch16_224_data": 5_005, "deit_base_patch16_224_data": 9_997}
DISTILLED = {                                                   # Scala's code at ratio 1
    "deit_tiny_distilled_patch16_224": 5_910_800, "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192, "deit_base_distilled_patch16_384": 87_630_032}
GIGA = {                                # the same, with the norms' operations; ratios: tests/scala
    "deit_so_tiny_patch16_224_scala": (1_532_104, 0.368),
    "deit_small_patch16_224_scala": (22_050_664, 4.608),
    "deit_base_patch16_224_scala": (86_567_656, 17.583),
    "deit_small_distilled_patch16_224_scala": (22_436_432, 4.634),
    "deit_base_distilled_patch16_224_scala": (87_338_192, 17.676)}
SCALA = {f"{name}_scala": counts for name, counts in DEIT.items()}
# parameters, of them trained, operations at each exit (T2T-ViT-12: the paper's Table 6)
DVT = {
    "DVT_T2t_vit_12": (22_461_516, 22_360_140, (0.4725, 1.4625, 3.4975)),
    "DVT_T2t_vit_14": (67_881_836, 67_735_916, (1.2065, 3.8409, 9.3276)),
    "DVT_Deit_small": (70_442_232, 70_442_232, (1.1453, 3.6563, 8.8438))}
REUSE = {                                                       # (feature, relation), T2T-ViT-12
    (True, False): (22_433_484, (0.473, 1.425, 3.308)),
    (False, True): (20_918_988, (0.473, 1.408, 3.335)),
    (False, False): (20_890_956, (0.473, 1.371, 3.145))}
T2T = {"t2t_vit_12": 1.78, "t2t_vit_14": 4.80}                  # operations: DVT, Table 3
SRET = {                                                        # the authors' README rounds them
    "sret_t": (4_755_979, 1.1124), "sret_t_wo_slice": (4_755_979, 1.3657),
    "sret_t_wo_slice_distill_384": (4_853_259, 6.4084), "sret_lt": (4_988_024, 1.1645),
    "sret_lt_16_14_1": (4_988_024, 1.2245), "sret_lt_wo_slice": (4_988_024, 1.4177),
    "sret_s": (20_899_692, 4.1728), "sret_s_wo_slice": (20_899_692, 4.6714),
    "sret_s_wo_slice_distill_384": (21_091_212, 18.4432),
    "sret_s_wo_slice_finetune_384": (21_091_212, 18.4432),
    "sret_s_wo_slice_distill_512": (21_317_004, 42.6717)}
SRET |= {re.sub("(_wo_slice|)$", r"\1_distill", name, count=1): counts      # the same networks
         for name, counts in SRET.items() if name.count("_") == 1 or name.endswith("wo_slice")}
MEASURED = ASVIT | DEIT | SVITE | SCALA | SRET
# Named by us, in sizes that are ours: a model for digits, the finest images for T and LT.
OURS = {"asvit_tiny", "sret_lt_wo_slice_distill_384", "sret_t_wo_slice_distill_512",
        "sret_lt_wo_slice_distill_512"}


def total(name: str, **options) -> dict[str, int]:
    return table(create_model(name, **options))["total"]


def test_every_name_of_a_counted_paper_is_counted_below():
    distilled = {f"{name}{end}" for name in DISTILLED for end in ("", "_scala")}
    counted = {*MEASURED, *distilled, *GIGA, *DVT, *T2T, *OURS}
    fixed = {name: make.func.__module__ for name, make in registry.variants("models").items()
             if isinstance(make, partial)}
    papers = {fixed[name] for name in counted}
    missing = {name for name, paper in fixed.items() if paper in papers} - counted
    assert not missing, missing


@pytest.mark.parametrize("name", MEASURED)
def test_counts_are_those_of_the_spec(name):
    parameters, macs = MEASURED[name]
    found = total(name)
    assert found["parameters"] == found["trained"] == parameters
    assert macs == (found["macs"] if isinstance(macs, int) else round(found["macs"] / 1e9, 4))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_adds_parameters_and_no_multiply_adds(name):
    found = total(name, token_number=138)
    assert (found["parameters"], found["macs"]) == (SVITE[name][0] + SELECTORS[name],
                                                    SVITE[name][1])


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_model_costs_what_scala_costs(name):
    found = total(name)
    assert found["parameters"] == DISTILLED[name]
    assert total(f"{name}_scala") == found


@pytest.mark.parametrize("name", GIGA)
def test_scala_at_its_full_width(name):
    parameters, giga = GIGA[name]
    assert total(name)["parameters"] == parameters
    assert round(create_model(name).flops() / 1e9, 3) == giga


@pytest.mark.parametrize("name", DVT)
def test_every_exit_of_dvt(name):
    parameters, trained, giga = DVT[name]
    found, model = total(name), create_model(name)
    assert (found["parameters"], found["trained"]) == (parameters, trained)
    assert tuple(round(sum(model.macs(exit=k).values()) / 1e9, 4) for k in (1, 2, 3)) == giga
    assert found["macs"] == sum(model.macs(exit=3).values())
    assert [round(flops, 4) for flops in model.extras()["flops"]] == list(giga)


@pytest.mark.parametrize("feature, relation", REUSE)
def test_dvt_without_reuse(feature, relation):
    model = create_model("DVT_T2t_vit_12", feature_reuse=feature, relation_reuse=relation)
    parameters, giga = REUSE[feature, relation]
    assert table(model)["total"]["parameters"] == parameters
    # rounded twice
    assert [sum(model.macs(exit=k).values()) / 1e9 for k in (1, 2, 3)] == approx(giga, abs=6e-4)


@pytest.mark.parametrize("name", T2T)
def test_a_t2t_vit_alone(name):
    assert sum(create_model(name).macs().values()) / 1e9 == approx(T2T[name], abs=6e-3)


@pytest.mark.parametrize("options, counts", [
    (dict(name="asvit", arch=SEED), (2_319_624, 491_595_264)),
    (dict(name="asvit_small", ape=False), (28_775_328, 5_132_481_024)),
    (dict(name="asvit_base", ape=False), (52_258_652, 8_754_150_656)),
    (dict(name="asvit_large", ape=False), (87_580_820, 22_358_480_640)),
    (dict(name="sret_t", groups1=(16, 14, 1), groups2=(1, 1, 1)), (4_755_979, 1.1725)),
    (dict(name="sret_t", image_size=384), (4_853_259, 4.2213)),
    (dict(name="sret_s", image_size=384), (21_091_212, 14.1374)),
    (dict(name="sret_s", image_size=512), (21_317_004, 29.0633))])
def test_models_that_have_no_name(options, counts):
    found, (parameters, macs) = total(**options), counts
    assert found["parameters"] == parameters
    assert macs == (found["macs"] if isinstance(macs, int) else round(found["macs"] / 1e9, 4))


def test_overview_names_the_share_of_each_phase():
    run = assemble(small_config())
    coarse, fine = (sum(run.model.macs(stride=s).values()) for s in (16, 4))
    assert f"({100 * coarse / fine:.1f} %), " in overview(run)
    assert "44 steps of 64 images on 8 x cpu" in overview(run)
