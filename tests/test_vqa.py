"""Models of transformers that answer DPG-Bench's questions, with small random weights."""

import json
import sys

import numpy as np
import pytest
import question_formula
from benchmarks import raises_user_error
from conftest import run_entry
from etils import epath
from PIL import Image

from tp_jax.evals.dpg.grids import join_tiles
from tp_jax.evals.dpg.questions import read_questions
from tp_jax.evals.dpg.vqa import load_vqa

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "<image>")
TEXT = "is there a red cup cat ? , it of true yes no two answer with or . :"
WORDS = (*SPECIAL, *TEXT.split())
QUESTIONS = ("Is there a red cup?", "cat?", "Is it true, yes or no?")
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} Answer:"
)


@pytest.fixture
def transformers():
    pytest.importorskip("torch").manual_seed(0)
    return pytest.importorskip("transformers")


def make_tokenizer(transformers):
    """Return a tokenizer of `WORDS` in the format of BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", bos_token="[DEC]", eos_token="[SEP]",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


SMALL = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)


def save_vilt(transformers, folder):
    labels = dict(enumerate(("yes", "no", "Yes.", "two", "red")))
    config = transformers.ViltConfig(
        **SMALL, vocab_size=len(WORDS), image_size=32, patch_size=8, id2label=labels,
        label2id={word: i for i, word in labels.items()},
    )  # fmt: skip
    model = transformers.ViltForQuestionAnswering(config)
    pictures = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    return save(folder, model, transformers.ViltProcessor(pictures, make_tokenizer(transformers)))


def save_blip(transformers, folder):
    text = SMALL | dict(
        initializer_range=0.5, vocab_size=len(WORDS), encoder_hidden_size=16, bos_token_id=5,
        pad_token_id=0, eos_token_id=3, sep_token_id=3,
    )  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config=SMALL | dict(image_size=32, patch_size=8)
    )
    model = transformers.BlipForQuestionAnswering(config)
    pictures = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return save(folder, model, transformers.BlipProcessor(pictures, make_tokenizer(transformers)))


def save_llava(transformers, folder):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**SMALL, vocab_size=len(WORDS), eos_token_id=3),
        image_token_index=WORDS.index("<image>"), image_seq_length=16,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    size = {"height": 32, "width": 32}
    pictures = transformers.CLIPImageProcessor(size=size, crop_size=size)
    processor = transformers.LlavaProcessor(
        pictures, make_tokenizer(transformers), patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    return save(folder, model, processor)


def save(folder, model, processor):
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.normal_(std=0.5)  # large enough that the answers differ
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return epath.Path(folder)


def answer_one(transformers, folder, image, question):
    """Return what a model answers to one question, computed without batches and padding."""
    config = json.loads((folder / "config.json").read_text())
    name = config["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    picture = Image.fromarray(image)
    if name.startswith("Vilt"):
        inputs = processor(images=picture, text=question, return_tensors="pt")
        return config["id2label"][str(model(**inputs).logits[0].argmax().item())]
    if name.startswith("Llava"):
        question = f"<image> {question} Answer with yes or no. Answer:"
    inputs = processor(images=picture, text=question, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0]
    if name.startswith("Llava"):
        tokens = tokens[inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.text
@pytest.mark.parametrize("save_model", [save_vilt, save_blip, save_llava])
def test_answers_of_a_batch_are_those_of_one_question_at_a_time(save_model, transformers, tmp_path):
    folder = save_model(transformers, tmp_path / "model")
    vqa, described = load_vqa(folder, "cpu")
    images = np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3), np.uint8)
    questions = [QUESTIONS[i % 3] for i in range(6)]
    found = vqa(images, questions)
    expected = [
        answer_one(transformers, folder, image, question).lower()
        for image, question in zip(images, questions, strict=True)
    ]
    shortened = {"yes.": "yes"}
    assert found == [shortened.get(answer.strip(), answer.strip()) for answer in expected]
    assert len(set(found)) > 1
    assert set(described) == {"vqa", "prompt", "weights"} and len(described["weights"]) == 64


@pytest.fixture
def samples(tmp_path):
    """The flags of a folder of random grids, and of the questions about them."""
    folder, table = tmp_path / "grids", tmp_path / "dpg_bench.csv"
    folder.mkdir()
    random = np.random.RandomState(0)
    for item in question_formula.ITEMS:
        tiles = random.randint(0, 256, (4, 32, 32, 3), np.uint8)
        Image.fromarray(join_tiles(tiles)).save(folder / f"{item}.png")
    table.write_text(question_formula.csv_text("dependent"), newline="")
    return [f"--samples={folder}", f"--questions={table}"]


@pytest.mark.text
def test_scores_are_resumed_and_never_mixed(transformers, samples, tmp_path):
    vilt = save_vilt(transformers, tmp_path / "vilt")
    answers, out = tmp_path / "answers.jsonl", tmp_path / "scores.json"
    flags = ["--suite=dpg", *samples, f"--results={answers}", f"--out={out}", "--batch_size=5"]
    code, stdout, stderr = run_entry("evaluate", f"--vqa={vilt}", *flags)
    assert code == 0, stderr
    content = json.loads(out.read_text())
    assert content["vqa"] == "ViltForQuestionAnswering" and len(content["weights"]) == 64
    assert "overall" in stdout and "compare only with scores from the same model" in stdout
    whole = answers.read_text()
    questions = read_questions(epath.Path(tmp_path / "dpg_bench.csv"))
    assert whole.count("\n") == 4 * len(questions)
    # Interrupted: only what is missing is answered again.
    answers.write_text(whole[: len(whole) // 2])
    assert run_entry("evaluate", f"--vqa={vilt}", *flags)[0] == 0
    assert answers.read_text() == whole and json.loads(out.read_text()) == content
    # The answers can be scored again without the model.
    code, stdout, _ = run_entry("evaluate", "--suite=dpg", flags[2], flags[3])
    assert code == 0 and f"{content['fixed']['score']:.2f}" in stdout
    blip = save_blip(transformers, tmp_path / "blip")
    code, _, stderr = run_entry("evaluate", f"--vqa={blip}", *flags)
    assert code == 2 and "has other answers: vqa was ViltForQuestionAnswering, now Blip" in stderr
    assert answers.read_text() == whole


@pytest.mark.text
def test_folders_that_are_no_vqa_are_refused(transformers, tmp_path):
    folder = save_vilt(transformers, tmp_path / "vilt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with raises_user_error("knows no model 'BertModel' that answers questions about images"):
        load_vqa(folder, "cpu")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    with raises_user_error("vilt has no tokenizer: download its files"):
        load_vqa(folder, "cpu")
    llava = save_llava(transformers, tmp_path / "llava")
    (llava / "chat_template.jinja").unlink()
    with raises_user_error("llava has no chat template"):
        load_vqa(llava, "cpu")
    with raises_user_error("nowhere has no config.json"):
        load_vqa(epath.Path(tmp_path / "nowhere"), "cpu")


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with raises_user_error("--vqa needs torch: pip install -e '.[text]'"):
        load_vqa(epath.Path(tmp_path))
