"""`hw.lens_dataset`: the same numbers as a lens, in flat memory, whatever interrupts it."""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path

import pytest
import torch

import headwater as hw
from headwater.errors import PromptError, RunFolderError, UnknownOptionError, UnknownWordError
from headwater.lenses import dataset as running
from headwater.lenses import summary as summaries
from headwater.lenses import view
from headwater.lenses.dataset import lens_dataset
from headwater.lenses.pieces import pieces
from headwater.lenses.rows import index_of
from headwater.lenses.run import lens
from headwater.lenses.summary import LensSummary
from headwater.lenses.tally import folder
from headwater.prompts.batches import Row
from shape_checks import unchecked
from tiny_tasks import model as tiny

TEXTS = [
    " ".join(f"w{random.Random(n).randint(3, 60)}" for _ in range(3 + n % 5)) + f" w{3 + n % 40}"
    for n in range(18)
]


def chosen():
    return tiny("Llama", torch.float32)


def same_state(one: LensSummary, other: LensSummary) -> None:
    ours, theirs = one.tally.state(), other.tally.state()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.nan_to_num(-7), theirs[name].nan_to_num(-7)), name


@pytest.fixture
def small_windows(monkeypatch):
    """A chunk is two batches."""
    monkeypatch.setattr(running, "WINDOW", 2)


# --- the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("mixtures", [False, True])
def test_means_and_quantiles_are_those_of_a_lens_over_the_same_prompts(mixtures):
    model = tiny("GPT-2")
    whole = lens(model, TEXTS, mixtures=mixtures, best=2)
    summary = lens_dataset(model, TEXTS, mixtures=mixtures, batch_size=4)
    for key, values in whole.arrays.values.items():
        flat = values.flatten(1)
        torch.testing.assert_close(summary.mean(key), flat.nanmean(1), rtol=1e-9, atol=1e-9)
        low = flat.nanquantile(0.3, dim=1, interpolation="lower")
        high = flat.nanquantile(0.3, dim=1, interpolation="higher")
        found = summary.quantile(key, 0.3)
        room = 0.0101 * found.abs() + 1e-6
        assert bool(((low - room <= found) & (found <= high + room)).all()), key
    assert summary.corpus["tokens"] == int(whole.mask.sum())
    assert summary.names == whole.names
    assert ("js(final)" in summary.keys) == mixtures


def test_sublayers_and_chosen_layers_are_rows():
    summary = lens_dataset(chosen(), TEXTS[:3], layers=[0], sublayers=True)
    assert summary.names == ("input", "r0.mid", "r0", f"r{chosen().anatomy().n_layers - 1}")
    assert index_of(summary.tally.rows, "final") == 3


@pytest.mark.parametrize("given", ["list", "generator", "function", "txt", "jsonl", "name", "ids"])
def test_every_way_of_giving_prompts_is_the_same_corpus(given, tmp_path):
    texts = TEXTS[:6]
    plain, lines = tmp_path / "corpus.txt", tmp_path / "corpus.jsonl"
    plain.write_text("\n\n".join(texts) + "\n")
    lines.write_text("".join(json.dumps({"text": text, "id": 3}) + "\n" for text in texts))
    tokenizer = chosen().tokenizer
    ways = {
        "list": texts,
        "generator": (text for text in texts),
        "function": lambda: (text for text in texts),
        "txt": plain,
        "jsonl": lines,
        "name": str(plain),
        "ids": [{"input_ids": tokenizer(text)["input_ids"]} for text in texts],
    }
    same_state(lens_dataset(chosen(), ways[given]), lens_dataset(chosen(), texts))


def test_a_limit_reads_the_first_prompts_only():
    same_state(lens_dataset(chosen(), TEXTS, limit=5), lens_dataset(chosen(), TEXTS[:5]))


def test_blank_texts_are_left_out_as_blank_lines_are():
    same_state(lens_dataset(chosen(), ["", *TEXTS[:3], "  "]), lens_dataset(chosen(), TEXTS[:3]))


def test_one_prompt_has_no_interval_and_says_so():
    assert "One prompt: no interval." in repr(lens_dataset(chosen(), TEXTS[:1]))


# --- long prompts ------------------------------------------------------------------------------


def test_long_prompts_are_cut_and_each_piece_begins_with_the_special_tokens():
    rows = [Row(0, (1, 5, 6, 7, 8, 9)), Row(1, (1, 5))]
    found = [(one.pair, one.clean) for one in pieces(rows, 3, {1})]
    assert found == [(0, (1, 5, 6)), (0, (1, 7, 8)), (0, (1, 9)), (1, (1, 5))]
    assert [one.clean for one in pieces(rows[:1], 4)] == [(1, 5, 6, 7), (8, 9)]
    assert list(pieces(rows, None)) == rows


def test_pieces_are_read_as_prompts_but_counted_as_one():
    long = " ".join(f"w{3 + n % 50}" for n in range(25))
    words = long.split()
    cut = lens_dataset(chosen(), [long, TEXTS[0]], max_tokens=10)
    apart = [" ".join(words[:10]), " ".join(words[10:20]), " ".join(words[20:]), TEXTS[0]]
    alone = lens_dataset(chosen(), apart)
    for key in cut.keys:
        torch.testing.assert_close(cut.mean(key), alone.mean(key), rtol=1e-5, atol=1e-6)
    assert (cut.corpus["prompts"], cut.corpus["pieces"]) == (2, 4)
    assert cut.tally.prompts == 2
    assert "2 prompts in 4 pieces" in repr(cut)
    low, high = cut.interval("entropy")
    narrow_low, narrow_high = alone.interval("entropy")
    assert bool((high - low > narrow_high - narrow_low).all())


def test_a_model_s_own_limit_cuts_too():
    model = tiny("GPT-2", torch.float32)
    positions = model.module.config.n_positions
    long = [[3 + n % 50 for n in range(positions + 5)]]
    assert lens_dataset(model, long, max_tokens=None).corpus["pieces"] == 2
    with pytest.raises(UnknownOptionError, match="max_tokens=1: a piece has two tokens at least"):
        lens_dataset(model, long, max_tokens=1)


# --- interruptions -----------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
def test_a_run_killed_after_any_chunk_ends_with_the_same_numbers(
    chunks, tmp_path, monkeypatch, small_windows
):
    straight = lens_dataset(chosen(), TEXTS, out=tmp_path / "straight", batch_size=2)
    real, written = folder.write, []

    def dies(*args):
        real(*args)
        written.append(args)
        if len(written) == chunks:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", dies)
        with pytest.raises(KilledError):
            lens_dataset(chosen(), TEXTS, out=tmp_path / "killed", batch_size=2)
    with pytest.raises(RunFolderError, match=f"was not finished: {4 * chunks} prompts were read"):
        LensSummary.load(tmp_path / "killed")
    resumed = lens_dataset(chosen(), TEXTS, out=tmp_path / "killed", batch_size=2)
    same_state(resumed, straight)
    same_state(LensSummary.load(tmp_path / "killed"), straight)
    for name in (folder.TENSORS, folder.REPORT):
        ours, theirs = (tmp_path / run / name for run in ("killed", "straight"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("forwards", [0, 1, 3, 5, 8])
def test_a_run_killed_within_a_chunk_loses_that_chunk_at_most(
    forwards, tmp_path, monkeypatch, small_windows
):
    straight = lens_dataset(chosen(), TEXTS, batch_size=2)
    real, counted = running.measure, []

    def dies(*args, **options):
        if len(counted) == forwards:
            raise KilledError
        counted.append(1)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(running, "measure", dies)
        with pytest.raises(KilledError):
            lens_dataset(chosen(), TEXTS, out=tmp_path, batch_size=2)
    again = []

    def counts(*args, **options):
        again.append(1)
        return real(*args, **options)

    monkeypatch.setattr(running, "measure", counts)
    same_state(lens_dataset(chosen(), TEXTS, out=tmp_path, batch_size=2), straight)
    assert len(again) == 9 - forwards // 2 * 2  # 18 prompts in 9 batches, 2 of them a chunk


def test_a_kill_while_the_sums_are_written_leaves_the_chunk_before(
    tmp_path, monkeypatch, small_windows
):
    from headwater.lenses.tally import folder as folders

    real, written = folders.save_file, []

    def dies(tensors, path, **options):
        written.append(path)
        if len(written) == 3:
            Path(path).write_bytes(b"half a fi")
            raise KilledError
        real(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "save_file", dies)
        with pytest.raises(KilledError):
            lens_dataset(chosen(), TEXTS, out=tmp_path, batch_size=2)
    assert folder.read(tmp_path)[0]["prompts"] == 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    same_state(
        lens_dataset(chosen(), TEXTS, out=tmp_path, batch_size=2),
        lens_dataset(chosen(), TEXTS, batch_size=2),
    )


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    first = lens_dataset(chosen(), TEXTS, out=tmp_path)
    monkeypatch.setattr(running, "measure", None)
    same_state(lens_dataset(chosen(), TEXTS, out=tmp_path), first)


def test_another_specification_in_the_folder_is_refused(tmp_path):
    lens_dataset(chosen(), TEXTS[:4], out=tmp_path)
    with pytest.raises(RunFolderError) as refused:
        lens_dataset(chosen(), TEXTS[:4], out=tmp_path, controls=3, seed=5)
    assert str(refused.value) == (
        f"{tmp_path} already holds another lens over a corpus. They differ in\n"
        "  controls: 8 there, 3 now\n  seed: 0 there, 5 now\n"
        "Choose another folder, or delete this one."
    )
    with pytest.raises(RunFolderError, match="They differ in\n  model: "):
        lens_dataset(tiny("GPT-2", torch.float32), TEXTS[:4], out=tmp_path)


def test_another_corpus_in_the_folder_is_refused(tmp_path):
    lens_dataset(chosen(), TEXTS[:4], out=tmp_path)
    with pytest.raises(RunFolderError, match="its first 4 are not those of this dataset"):
        lens_dataset(chosen(), TEXTS[1:6], out=tmp_path)
    with pytest.raises(RunFolderError, match="its first 4 are not those of this dataset"):
        lens_dataset(chosen(), TEXTS[:2], out=tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(RunFolderError, match=r"holds other files .* \(thesis.tex\)"):
        lens_dataset(chosen(), TEXTS[:4], out=tmp_path)


@pytest.mark.parametrize("name", [folder.TENSORS, folder.REPORT])
def test_a_damaged_folder_is_refused(name, tmp_path):
    lens_dataset(chosen(), TEXTS[:4], out=tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunFolderError):
        LensSummary.load(tmp_path)


def test_an_empty_folder_holds_no_lens(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no lens over a corpus: there is no tally"):
        LensSummary.load(tmp_path)


# --- results -----------------------------------------------------------------------------------


def test_a_saved_summary_is_read_back_with_its_answers(tmp_path):
    summary = lens_dataset(chosen(), TEXTS)
    loaded = LensSummary.load(summary.save(tmp_path / "here"))
    same_state(loaded, summary)
    assert repr(loaded) == repr(summary)
    assert loaded.vocabulary == summary.vocabulary
    assert loaded.to_dict() == summary.to_dict()
    with pytest.raises(RunFolderError, match="They differ in\n  prompts: "):
        lens_dataset(chosen(), TEXTS[:3]).save(tmp_path / "here")


def test_the_report_is_json_that_any_program_reads(tmp_path):
    summary = lens_dataset(chosen(), TEXTS, out=tmp_path)
    report = json.loads((tmp_path / folder.REPORT).read_text(), parse_constant=pytest.fail)
    assert report["jumps"]["sentences"] == summary.jumps().sentences()
    assert report["corpus"]["prompts"] == len(TEXTS)
    assert len(report["statistics"]) == len(summary.keys) * len(summary.names)


def test_a_summary_says_its_means_and_sentences():
    summary = lens_dataset(chosen(), TEXTS)
    text = repr(summary)
    assert text.startswith(f"Lens of {chosen().name} over 18 prompts, {summary.corpus['tokens']}")
    for sentence in (*summary.jumps().sentences(), *summary.rarity().sentences()):
        assert sentence in text
    assert len(summary.to_frame()) == len(summary.keys) * len(summary.names)


@pytest.mark.parametrize("counts", ["corpus", {2: 3.0, 3: 1.0, 4: 2.0}])
def test_rarity_is_computed_once_for_all_that_show_it(counts, tmp_path, monkeypatch):
    real, asked = summaries.rarity, []

    def counted(tally, counts, **options):
        asked.append(counts)
        return real(tally, counts, **options)

    monkeypatch.setattr(summaries, "rarity", counted)
    monkeypatch.setattr(view, "TYPES", 1)
    summary = lens_dataset(chosen(), TEXTS, out=tmp_path)
    repr(summary)
    summary.to_dict()
    summary.page(tmp_path / "page.html", counts=counts)
    assert asked == (["corpus"] if counts == "corpus" else ["corpus", counts])
    assert summary.rarity(seed=1).sentences() != []
    assert len(asked) == (2 if counts == "corpus" else 3)


def test_rows_are_written_as_a_lens_writes_them(tmp_path):
    lens_dataset(chosen(), TEXTS[:3], out=tmp_path)
    assert folder.read(tmp_path)[0]["rows"][:2] == [
        {"name": "input", "kind": "input", "layer": 0, "site": "resid_pre"},
        {"name": "r0", "kind": "residual", "layer": 0, "site": "resid_post"},
    ]


def test_frequencies_by_text_are_of_the_tokens_as_they_are_shown():
    summary = lens_dataset(chosen(), TEXTS)
    by_id = {token: 1.0 + token for token in summary.vocabulary}
    by_text = {summary.vocabulary[token]: count for token, count in by_id.items()}
    assert summary.rarity(by_text).to_dict() == summary.rarity(by_id).to_dict()


def test_without_controls_a_summary_has_no_rarity():
    summary = lens_dataset(chosen(), TEXTS[:4], controls=0)
    assert "Spearman" not in repr(summary)
    assert summary.to_dict()["rarity"] is None
    with pytest.raises(UnknownOptionError, match="Write controls=8"):
        summary.rarity()


# --- cost --------------------------------------------------------------------------------------


def test_every_prompt_is_run_once(monkeypatch):
    model, seen = chosen(), []
    real = running.measure

    def counts(model, head, batch, plan, **options):
        seen.extend(batch.pairs)
        return real(model, head, batch, plan, **options)

    monkeypatch.setattr(running, "measure", counts)
    lens_dataset(model, TEXTS, batch_size=4)
    assert sorted(seen) == list(range(len(TEXTS)))


def test_memory_does_not_grow_with_the_corpus(small_windows):
    seen: dict[int, tuple[int, int]] = {}

    def watched(prompts):
        for number in range(prompts):
            if number in (40, 240):  # at a window's begin, in the middle of the run
                gc.collect()
                tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
                size = sum(one.numel() * one.element_size() for one in tensors)
                seen[number] = sys.getallocatedblocks(), size
            yield TEXTS[number % len(TEXTS)]

    with unchecked():
        lens_dataset(chosen(), watched(250), batch_size=4)
    (blocks, size), (blocks_later, size_later) = seen[40], seen[240]
    assert size_later < size + 5_000  # one position of one prompt is a thousand bytes
    assert blocks_later - blocks < 200  # fewer than one object a prompt


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "the list in dataset= gave no prompt, so there is nothing to read."),
        ({"train": TEXTS}, "dataset= is a mapping with 'train', not prompts."),
        (Path("no/such.txt"), "no file 'no/such.txt' in dataset=."),
        ("no such text", "no file 'no such text' in dataset=."),
        ([TEXTS[0], 3], "prompt 1 of the list is the number 3: "),
        ([{"a": "x", "b": "y"}], "Choose one: dataset=data['text']"),
        (3, "dataset=3 (int) gives no prompts."),
    ],
)
def test_what_gives_no_prompts_is_refused_by_name(dataset, message):
    with pytest.raises(PromptError) as refused, unchecked():
        lens_dataset(chosen(), dataset)
    assert message in str(refused.value)


def test_an_unknown_word_is_refused_with_the_prompt_s_number():
    with pytest.raises(UnknownWordError, match="prompt 1 of the list: the tokenizer has no token"):
        lens_dataset(hw.load("tiny"), ["The year 14", "The yaer 14"])


def test_numbers_that_make_no_run_are_refused():
    with pytest.raises(UnknownOptionError, match=r"controls=8, limit=0, batch_size=8"):
        lens_dataset(chosen(), TEXTS, limit=0)
