"""Check every preset: that it loads, is minimal and explained, and fits its GPU.

Every fault of every preset is named with file and line. Exit status: 0 all passed, 1
some are not.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from gpt2.plan.jobs import Plan
from gpt2.plan.planning import make_plan
from gpt2.run.plan_listing import too_large
from gpt2.settings.configuration import strict_kconfig
from lib.gpu.peaks import PEAKS
from lib.house_rules import Violation
from lib.kconfig.dotconfig import leading_comments
from lib.output import exit_code

ROOT = Path(__file__).resolve().parents[1]
HARDWARE = re.compile(r"# Hardware: .+?\. Time: .+")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.parse_args(arguments)
    presets = sorted(p for p in (ROOT / "defconfigs").glob("[!.]*") if p.is_file())
    faults = [fault for preset in presets for fault in faults_of(preset)]
    for fault in faults:
        print(fault)
    if not presets:
        print("defconfigs: no preset found")
    return 1 if faults or not presets else 0


def faults_of(preset: Path) -> Iterator[str]:
    """Lines that name what is wrong with one preset."""
    name = preset.relative_to(ROOT).as_posix()
    try:
        tree = strict_kconfig().open([preset])
        # The weights that a preset starts from are the user's.
        plan = make_plan(strict_kconfig().load([preset], ["INIT_FROM="]))
        minimal = tree.minimal().split("\n")
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            yield line if name in line else f"{name}: {line}"
        return
    lines = preset.read_text(encoding="utf-8").split("\n")
    comments = len(leading_comments(lines))
    if not comments:
        said = "must begin with a comment: what it is for; hardware; expected hours"
        yield str(Violation(name, 1, said))
    if not any(map(HARDWARE.fullmatch, lines[:comments])):
        said = "needs a line '# Hardware: one H100 (80 GB). Time: about 3 hours.'"
        yield str(Violation(name, 2, said))
    yield from differences(name, comments, lines[comments:], minimal)
    for problem in hardware_faults(lines[:comments], plan):
        yield str(Violation(name, 1, problem))


def hardware_faults(comment: Sequence[str], plan: Plan) -> Iterator[str]:
    """Check the comment's GPU against GPU_MEMORY_GB, the table of cards and
    the estimated memory of every cell."""
    resources = plan.base.resources
    if resources.device == "cpu":
        return
    hardware = next((line for line in comment if line.startswith("# Hardware:")), "")
    hardware = hardware.partition("Time:")[0]
    memory = resources.gpu_memory
    if not memory:
        yield "GPU_MEMORY_GB tells what it is for; it is not set, nor is DEVICE='cpu'"
        return
    if not re.search(rf"\b{memory} GB\b", hardware):
        yield f"GPU_MEMORY_GB={memory}, but '# Hardware:' does not say '{memory} GB'"
    for peak in PEAKS:
        if re.search(rf"\b{peak.card}\b", hardware) and peak.memory_gb != memory:
            yield f"{peak.card}: {peak.memory_gb} GB, not GPU_MEMORY_GB={memory}"
    yield from too_large(plan)


def differences(
    name: str, offset: int, lines: Sequence[str], minimal: Sequence[str]
) -> Iterator[str]:
    """The first line that savedefconfig would write otherwise."""
    pairs = zip_longest(lines, minimal, fillvalue="(nothing)")
    for number, (line, wanted) in enumerate(pairs, offset + 1):
        if line != wanted:
            said = f"not as savedefconfig writes it: {line!r} where {wanted!r} belongs"
            yield str(Violation(name, number, said))
            return


if __name__ == "__main__":
    sys.exit(exit_code(main))
