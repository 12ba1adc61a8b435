"""`make inference-bench` on untrained and on trained models; no time is judged."""

import csv
import json

import pytest
import torch

from gpt2.infer.bench import speed
from gpt2.plan.budget import kv_bytes
from gpt2.plan.planning import step_settings
from tests.gpt2.helpers import full_size
from tests.scripts.inprocess import run_script

SMALL = (
    "MODEL=CUSTOM N_LAYER=2 N_HEAD=2 N_EMBD=16 BLOCK_SIZE=32 RA_MLA_LATENT_DIM=8 "
    "RA_MLA_RA_WINDOW=4 TOKENIZER=BYTES DEVICE=cpu"
)
QUICK = "--prompt_tokens 5 --new_tokens 6 --batches 1,3 --repeats 1".split()


def bench(folder, *words, code=0):
    done = run_script("inference_bench.py", *QUICK, *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or "Next: " in done.stdout.splitlines()[-1]
    return done


def rows(folder):
    return json.loads((folder / "speed.json").read_text())["rows"]


def test_untrained_arms_beside_transformers(tmp_path):
    pytest.importorskip("transformers")
    words = ["--overrides", f"STEPS=0,5,8 {SMALL}", "--out", "speed.json"]
    done = bench(tmp_path, *words, "--contexts", "30")
    found = rows(tmp_path)
    names = [row["what"] for row in found]
    peers = ["transformers"] * 2 + ["transformers-static"] * 2
    assert names == ["0 baseline"] * 4 + peers + ["5 ra"] * 4 + ["8 mla"] * 4
    assert "note: no graph per token, because it is not on a GPU" in done.stdout
    for row in found:
        assert row["batch"] in (1, 3) and row["context"] in (11, 30)
        assert 0 < row["p50_ms"] <= row["p95_ms"] < 1e5
        assert row["decode_tokens_per_second"] > 0
        assert ("prefill_tokens_per_second" in row) == (row["context"] == 11)
        if row["what"] in peers:
            assert row["same_tokens"] == 1.0, "the same weights give the same tokens"
        else:
            assert row["cache_bytes_per_token"] == row["cache_bytes_stated"]
            total = row["cache_bytes_per_token"] * row["batch"] * row["context"]
            assert row["cache_bytes"] == round(total)
    cached = {r["what"]: r["cache_bytes_per_token"] for r in found if "graphs" in r}
    # Two layers: keys and values of 16; two latents of 8; the queries of a
    # window of 4 and of the token itself over 30.
    assert cached["0 baseline"] == 4 * 2 * 2 * 16
    assert cached["8 mla"] == 4 * 2 * 2 * 8
    assert cached["5 ra"] == pytest.approx(4 * 2 * (2 * 16 + 5 * 16 / 30))


def report(folder):
    """The figures of the runs are in the report, those of another run are not."""
    by_run = {row["run_dir"]: row for row in rows(folder) if row["batch"] == 1}
    (five,) = (one for one in by_run if "step05" in one)
    done = run_script("report.py", "--no-html", "results", cwd=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "results/results.csv").open() as file:
        (found,) = (row for row in csv.DictReader(file) if row["step"] == "5")
    assert float(found["infer_p50_ms"]) == by_run[five]["p50_ms"]
    cached = by_run[five]["cache_bytes_per_token"]
    assert float(found["infer_cache_bytes_per_token"]) == cached
    assert "ms/token" in (folder / "results/REPORT.md").read_text()
    path = folder / five / "inference.json"
    path.write_text(path.read_text().replace(by_run[five]["hash"], "0" * 64))
    done = run_script("report.py", "--no-html", "results", cwd=folder)
    with (folder / "results/results.csv").open() as file:
        (found,) = (row for row in csv.DictReader(file) if row["step"] == "5")
    assert not found["infer_p50_ms"] and "of another run" in done.stdout + done.stderr


def test_gpt2s_latent_cache_is_six_times_smaller():
    mine, latent = (step_settings(full_size(), step) for step in (0, 8))
    assert kv_bytes(mine) == 6 * kv_bytes(latent)


def test_percentiles_are_of_the_fastest_generation():
    fast = [0.5, *(number / 1000 for number in range(1, 21))]  # 1 to 20 ms
    found = speed([[0.4, *[1.0] * 20], fast], batch=2, prompt=10)
    assert found["prefill_tokens_per_second"] == pytest.approx(2 * 10 / 0.4)
    assert found["decode_tokens_per_second"] == pytest.approx(2 * 20 / 0.21)
    assert found["p50_ms"] == pytest.approx(10.5)
    assert found["p95_ms"] == pytest.approx(19.05)  # not the slowest of twenty


def test_threads_are_those_configured(tmp_path):
    words = ["--overrides", f"STEPS=0 {SMALL} CPU_THREADS=2", "--out", "speed.json"]
    before = torch.get_num_threads()
    try:
        bench(tmp_path, *words, "--peers", ",")
    finally:
        torch.set_num_threads(before)
    assert json.loads((tmp_path / "speed.json").read_text())["threads"] == 2


def test_a_measurement_that_fails_leaves_the_others(tmp_path):
    words = ["--overrides", f"STEPS=0 {SMALL}", "--out", "speed.json", "--peers", ","]
    done = bench(tmp_path, *words, "--batches", "1,100000000000000", code=1)
    one, many = rows(tmp_path)
    assert one["p50_ms"] > 0 and "RuntimeError" in many["failed"]
    assert f"batch 100000000000000, context 11: {many['failed']}" in done.stderr


def test_trained_runs_and_what_is_refused(finished):
    words = ["--out", "speed.json", "--peers", ","]
    bench(finished, *words, "0,5")
    assert {r["what"] for r in rows(finished)} == {
        "0 baseline, seed 1",
        "5 ra, seed 1",
    }
    report(finished)
    once = ["--batches", "1,1", "--repeats", "1", *words, "5"]
    for given, tokens in {(): (8, 8), ("--new_tokens", "3"): (13, 3)}.items():
        done = run_script("inference_bench.py", *once, *given, cwd=finished)
        assert done.returncode == 0, done.stderr  # the context of 16, filled
        found = json.loads((finished / "speed.json").read_text())
        assert (found["prompt_tokens"], found["new_tokens"]) == tokens
        assert len(found["rows"]) == 1
    said = bench(finished, *words, "--contexts", "17", "5", code=2).stderr
    assert "CONTEXTS=17: 17 tokens do not fit the context of 16 of 5 ra" in said
    assert "tokens/s" not in said  # nothing was timed before
    said = bench(finished, *words, "--new_tokens", "12", "5", code=2).stderr
    assert "PROMPT_TOKENS=5 and NEW_TOKENS=12: 17 tokens do not fit" in said
    said = bench(finished, *once[:-1], "--peers", "transformers", "5").stdout
    assert "note: transformers: not timed without step 0" in said
    said = bench(finished, "--batches", ",", "5", code=2).stderr
    assert "BATCHES=, names no number" in said
    said = bench(finished, "--peers", "vllm", "5", code=2).stderr
    assert "PEERS=vllm must be transformers or transformers-static" in said
    # A single token is timed with its prompt: there would be no time of a token.
    for name, least in {"BATCHES": 1, "NEW_TOKENS": 2, "CONTEXTS": 3}.items():
        few = (f"--{name.lower()}", str(least - 1))
        said = bench(finished, *few, "5", code=2).stderr
        assert f"{name}={least - 1} must be a whole number of at least {least}" in said
        bench(finished, *once, f"--{name.lower()}", str(least))
