"""gpt2/infer/compared.py: arms against the first, over shared seeds and items."""

from gpt2.infer.compared import ScoredRun, by_powers, compare_arms, position_rows
from gpt2.report.evaluations import Measure
from lib.items_by_seeds import crossed_mean


def run(arm, seed, values, of="", **others):
    measures = {n: Measure(tuple(v), of) for n, v in {"m": values, **others}.items()}
    return ScoredRun(arm, seed, "folder", "hash", measures, {})


def test_arms_are_paired_by_seed_and_item_with_the_first():
    rows = compare_arms(
        [
            run("a", 1, [1.0, 2.0, 4.0]),
            run("b", 2, [2.5, 3.0, 4.0]),
            run("a", 2, [2.0, 2.0, 2.0]),
            run("b", 1, [1.5, 2.0, 3.0]),
            run("b", 3, [9.0, 9.0, 9.0]),  # of a seed that the first does not have
            run("c", 7, [1.0, 1.0, 1.0]),
            run("d", 1, [1.0, 1.0, 1.0], of="other items"),
        ]
    )
    assert [(row.arm, row.mean) for row in rows] == [
        *(("a", 13 / 6), ("b", 43 / 9), ("c", 1.0), ("d", 1.0))
    ]
    first, second, *others = rows
    assert {row.difference for row in (first, *others)} == {None}
    assert second.difference == crossed_mean([[0.5, 1.0, 2.0], [0.5, 0.0, -1.0]])
    assert second.p_holm == second.difference.p


def test_p_is_corrected_over_all_differences():
    base = [1.0, 2.0, 4.0, 3.0]
    rows = compare_arms(
        [
            run("a", 1, base, n=base),
            run("b", 1, [1.1, 2.2, 4.1, 3.3], n=[1.0, 2.5, 4.1, 2.0]),
        ]
    )
    raw = {row.measure: row.difference.p for row in rows if row.difference}
    corrected = {row.measure: row.p_holm for row in rows if row.difference}
    assert corrected["m"] == 2 * raw["m"] < 0.1 < raw["n"] == corrected["n"]


def test_positions_go_by_powers_of_two():
    positions = [(1.0, 1), (4.0, 2), (3.0, 1), (9.0, 2), (8.0, 4), (0.0, 0)]
    found = by_powers(positions)
    assert found == {0: 1.0, 1: 2.0, 2: 4.0, 4: 2.0}
    one = ScoredRun("a", 1, "x", "h", {}, found)
    other = ScoredRun("b", 1, "x", "h", {}, {0: 3.0, 8: 1.0})
    assert list(position_rows([one, other])) == [
        ("0", [1.0, 3.0]),
        ("1", [2.0, None]),
        ("2 to 3", [4.0, None]),
        ("4 to 7", [2.0, None]),
        ("8 to 15", [None, 1.0]),
    ]
