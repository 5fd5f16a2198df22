"""The parser of compiled TPU modules, on texts written by hand in the compiler's form."""
import pytest

from vit_efficient.measure.hlo import arrays, cost

MODULE = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %n = f32[8,128]{1,0:T(8,128)} negate(%p), backend_config={"estimated_cycles":"999"}
}

%scattered (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %r = f32[8,128]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %w = f32[8,128]{1,0:T(8,128)} fusion(%v), calls=%fused, backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %w)
}

%condition (s: (s32[], f32[8,128])) -> pred[] {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8,128], b: bf16[3,100]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x(y"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%zero, %a)
"""
TAIL = "}\n"


def entry(*lines: str):
    return cost(MODULE + "".join(f"  {line}\n" for line in lines) + TAIL)


KIB4 = 8 * 128 * 4


def test_sizes_are_those_of_padded_tiles():
    sizes = lambda text: [array.bytes for array in arrays(text)]
    assert sizes("f32[8,128]{1,0:T(8,128)}") == [KIB4]
    assert sizes("bf16[3,100]{1,0:T(8,128)(2,1)}") == [8 * 128 * 2]
    assert sizes("f32[100,3]{0,1:T(8,128)}") == [8 * 128 * 4]      # the first axis is the fastest
    assert sizes("s32[]{:T(128)}") == [4] and sizes("f32[5]{0:T(128)}") == [512]
    assert sizes("(pred[7], u8[2,3])") == [7, 6] and sizes("f8e4m3fn[10]") == [10]
    assert sizes("s4[10]") == [5] and sizes("c64[2]") == [16]
    assert [array.on_chip for array in arrays("(f32[2]{0:S(1)}, f32[2])")] == [True, False]


def test_an_operation_costs_its_cycles_operands_and_results():
    found = entry('%f = f32[8,128]{1,0:T(8,128)} fusion(%a), calls=%fused, '
                  'backend_config={"estimated_cycles":"100"}',
                  '%g = f32[8,128]{1,0:T(8,128)S(1)} fusion(%f), calls=%fused, '
                  'backend_config={"estimated_cycles":"5"}')
    assert (found.cycles, found.bytes_moved) == (105, 2 * KIB4 + KIB4)
    assert not found.collectives and not found.bytes_sent


def test_a_copy_between_memories_moves_one_side():
    found = entry("%c = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) "
                  "copy-start(%a)",
                  "%d = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%c)")
    assert found.bytes_moved == KIB4


@pytest.mark.parametrize("known", [', backend_config={"known_trip_count":{"n":"12"}}', ""])
def test_a_loop_counts_as_often_as_it_runs(known):
    found = entry(f"%l = (s32[], f32[8,128]{{1,0:T(8,128)}}) while(%start), condition=%condition, "
                  f"body=%body{known}")
    assert (found.cycles, found.bytes_moved) == (12 * 10, 12 * 2 * KIB4)


@pytest.mark.parametrize("branches", ["branch_computations={%body, %condition}",
                                      "true_computation=%body, false_computation=%condition"])
def test_branches_count_in_equal_parts(branches):
    found = entry(f"%c = (s32[], f32[8,128]) conditional(%zero, %start, %start), {branches}")
    assert found.cycles == 10 / 2


@pytest.mark.parametrize("operation, kind, size, sent", [
    ("all-reduce(%a), replica_groups=[1,16]<=[16], to_apply=%add", "all-reduce", KIB4, 15 / 8),
    ("all-reduce(%a), replica_groups={}, to_apply=%add", "all-reduce", KIB4, 15 / 8),
    ("all-gather(%a), replica_groups=[4,4]<=[16], dimensions={0}", "all-gather", KIB4, 3 / 4),
    ("reduce-scatter(%a), replica_groups={{0,1,2},{3,4,5}}", "reduce-scatter", KIB4, 2),
    ("collective-permute(%a), source_target_pairs={{0,1}}", "collective-permute", KIB4, 1),
    ("fusion(%a), kind=kCustom, calls=%scattered", "all-reduce", KIB4, 1)])
def test_a_collective_sends_at_least_its_share(operation, kind, size, sent):
    found = entry(f"%r = f32[8,128]{{1,0:T(8,128)}} {operation}")
    assert found.collectives == {kind: (1, size)}
    assert found.bytes_sent == pytest.approx(sent * size)


def test_a_started_collective_counts_once():
    pair = "(f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)})"
    found = entry(f"%s = {pair} all-gather-start(%a), replica_groups=[4,4]<=[16], dimensions={{0}}",
                  "%d = f32[32,128]{1,0:T(8,128)} all-gather-done(%s)")
    assert found.collectives == {"all-gather": (1, 4 * KIB4)}


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        cost("HloModule nothing")
