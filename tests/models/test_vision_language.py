"""Towers of open_clip: prompts, encodings, and files of weights, good and bad."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ltpipe.compat import import_open_clip
from ltpipe.config.backbones import VisionLanguage
from ltpipe.models import vision_language
from ltpipe.models.vision_language import (
    build_prompts,
    build_towers,
    encode_images,
    encode_texts,
    load_towers,
    token_rows,
)
from ltpipe.utils.errors import InputError

NAMES = ["aquarium_fish", "apple", "boy"]


def settings_of(**values):
    return VisionLanguage.model_validate(
        {"system": "vision-language", "network": "small-vit", **values}
    )


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return build_towers(settings_of())


@pytest.mark.parametrize("network", ["small-vit", "small-resnet"])
def test_small_towers_have_clips_parts(network):
    torch.manual_seed(0)
    made = build_towers(settings_of(network=network, logit_scale=20.0))
    assert isinstance(made, import_open_clip().CLIP)
    assert not made.training
    assert made.logit_scale.exp().item() == pytest.approx(20)
    assert sum(p.numel() for p in made.parameters()) < 4e6
    images = torch.randn(3, 1, 8, 8)
    features = encode_images(made, images)
    assert features.shape == (3, 64)
    assert not torch.allclose(features.norm(dim=1), torch.ones(3), atol=0.01)


@torch.no_grad()
def test_texts_are_the_mean_directions_of_whole_prompts(towers):
    templates = ["a photo of a {class}.", "art of the {class}"]
    prompts = build_prompts(towers, NAMES, settings_of(templates=templates))
    assert prompts.texts[:2] == ["a photo of a aquarium fish.", "art of the aquarium fish"]
    found = encode_texts(towers, prompts)
    # The whole context and the whole token table, by open_clip alone.
    tokens = import_open_clip().SimpleTokenizer(context_length=24)(prompts.texts)
    whole = F.normalize(towers.encode_text(tokens), dim=1).view(3, 2, -1).mean(1)
    torch.testing.assert_close(found, F.normalize(whole, dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        encode_texts(towers, prompts, 2 * token_rows(towers, prompts)),
        encode_texts(_with_table(towers, 2), prompts),
    )


def _with_table(towers, factor):
    torch.manual_seed(0)
    other = build_towers(settings_of())
    other.load_state_dict(towers.state_dict())
    other.token_embedding.weight.mul_(factor)
    return other


def test_gradients_reach_the_rows_that_prompts_use(towers):
    prompts = build_prompts(towers, NAMES, settings_of())
    table = token_rows(towers, prompts).detach().clone().requires_grad_()
    encode_texts(towers, prompts, table).sum().backward()
    # All but the padding, which comes after the token that is read.
    used = (table.grad.abs().sum(1) > 0).tolist()
    assert used.count(False) == 1
    assert prompts.rows[used.index(False)] == 0
    towers.zero_grad()


@torch.no_grad()
def test_images_are_enlarged_and_grey_is_repeated(towers):
    image = torch.randn(2, 1, 8, 8)
    three = encode_images(towers, image.repeat(1, 3, 1, 1))
    torch.testing.assert_close(encode_images(towers, image), three)
    torch.testing.assert_close(three, towers.encode_image(image.repeat(1, 3, 1, 1)))
    larger = torch.randn(2, 3, 16, 16)
    shrunk = F.interpolate(larger, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(encode_images(towers, larger), towers.encode_image(shrunk))


def test_a_prompt_beyond_the_context_is_refused(towers):
    with pytest.raises(InputError, match=r"27 tokens, small-vit reads 24: shorten templates"):
        build_prompts(towers, ["a " * 24 + "b"], settings_of(templates=["{class}"]))


def test_imagenets_names_are_for_a_thousand_classes(towers):
    named = settings_of(class_names="imagenet", templates=["{class}"])
    prompts = build_prompts(towers, [str(label) for label in range(1000)], named)
    assert prompts.texts[:2] == ["tench", "goldfish"]
    with pytest.raises(InputError, match="names 1000 classes, the data set has 3"):
        build_prompts(towers, NAMES, named)


def test_the_vocabulary_is_checked(monkeypatch):
    tokenizer = import_open_clip().SimpleTokenizer
    made = tokenizer()
    made.vocab_size = 2
    monkeypatch.setattr(import_open_clip(), "SimpleTokenizer", lambda *args, **kwargs: made)
    with pytest.raises(InputError, match="knows 49408 tokens, open_clip's tokenizer 2"):
        build_towers(settings_of())


@pytest.mark.parametrize("form", ["plain.safetensors", "plain.pt", "nested.pt", "parallel.bin"])
def test_files_of_weights_load(towers, tmp_path, form):
    state = {key: value.clone() for key, value in towers.state_dict().items()}
    path = tmp_path / form
    if form.startswith("parallel"):
        state = {f"module.{key}": value for key, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "nested" in form else state, path)
    torch.manual_seed(9)
    other = build_towers(settings_of())
    assert not torch.equal(other.visual.proj, towers.visual.proj)
    load_towers(other, path)
    assert all(map(torch.equal, other.state_dict().values(), towers.state_dict().values()))


class Evil:
    """What a file of weights must never be able to do."""

    def __reduce__(self):
        return print, ("ran",)


def test_bad_files_get_one_clear_error(towers, tmp_path, capsys):
    state = dict(towers.state_dict())
    torch.save({"visual": Evil()}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "archive.pt")
    (tmp_path / "text.pt").write_text("not weights")
    save_file(state, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({k: v for k, v in state.items() if k != "ln_final.bias"}, tmp_path / "a.safetensors")
    save_file({**state, "head.weight": torch.ones(1)}, tmp_path / "b.safetensors")
    words = {**state, "token_embedding.weight": torch.ones(2, 32)}
    save_file(words, tmp_path / "c.safetensors")
    for name, message in {
        "missing.safetensors": "missing.safetensors does not exist",
        "code.pt": "code.pt is damaged or holds more than tensors",
        "list.pt": "list.pt is not a plain state dict",
        "archive.pt": "archive.pt is a TorchScript archive.*torch.jit.load",
        "text.pt": "text.pt is damaged",
        "cut.safetensors": "cut.safetensors is damaged",
        "a.safetensors": "a.safetensors: ln_final.bias is missing; these weights",
        "b.safetensors": "b.safetensors: head.weight is unknown",
        "c.safetensors": r"token_embedding.weight has shape \(2, 32\), the network needs \(49408",
    }.items():
        with pytest.raises(InputError, match=message):
            load_towers(towers, tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_a_tag_without_a_network_says_what_to_put_where(monkeypatch):
    def fails(*arguments, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(import_open_clip().pretrained, "download_pretrained", fails)
    message = (
        r"weights 'openai' of RN50 can't be downloaded \(OSError\); fetch "
        r"open_clip_model.safetensors from huggingface.co/timm/resnet50_clip.openai/ .* set "
        r"weights: PATH/TO/IT, network: RN50-quickgelu"
    )
    with pytest.raises(InputError, match=message):
        build_towers(settings_of(network="RN50", weights="openai"))


def test_an_unknown_tag_is_refused_before_anything_is_fetched():
    with pytest.raises(InputError, match=r"'openia' of RN50 \(did you mean 'openai'\?\); known: "):
        build_towers(settings_of(network="RN50", weights="openia"))


def test_published_weights_bring_their_activation(monkeypatch):
    opened = import_open_clip()
    seen = []

    def record(**config):
        seen.append(config)
        raise InterruptedError

    monkeypatch.setattr(opened.pretrained, "download_pretrained", lambda published: "x")
    monkeypatch.setattr(opened, "CLIP", record)
    for values in ({"weights": "openai"}, {"weights": "a/file.pt"}, {}):
        with pytest.raises(InterruptedError):
            build_towers(settings_of(network="RN50", **values))
    with pytest.raises(InterruptedError):
        build_towers(settings_of(network="RN50-quickgelu", weights="a/file.pt"))
    assert [config.get("quick_gelu", False) for config in seen] == [True, False, False, True]


@pytest.mark.heavy
def test_open_clip_is_imported_only_when_it_is_needed():
    code = (
        "import sys, ltpipe.features.vision_language, ltpipe.stage1.vision_language, "
        "ltpipe.stage2.ecvl.job, ltpipe.plan.layout\n"
        "print(any(name.split('.')[0] in ('open_clip', 'torchvision') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "RN5O"}, "did you mean 'RN50'"),
        ({"templates": ["a photo"]}, "has no {class}"),
        ({"weights": "x.pt"}, "starts from random numbers only"),
        ({"momentum": 0.5}, "momentum belongs to optimizer: sgd"),
        ({"head": "cosine"}, "mean nothing to these towers"),
        ({"features": {"train_bn": True}}, "FFN's backbones"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**values)


def test_towers_say_where_they_come_from():
    assert "random initial weights, not pretrained, 50 epochs" in settings_of().origin()
    from_file = settings_of(network="RN50", weights="a/b.safetensors", epochs=0)
    assert from_file.origin() == "RN50: weights from the file a/b.safetensors, not trained here"
    assert from_file.weights_file() == "a/b.safetensors"
    from_tag = settings_of(network="RN50", weights="openai")
    assert from_tag.origin() == "RN50: pretrained weights openai, 50 epochs of fine-tuning"
    assert from_tag.weights_file() is None


@pytest.mark.parametrize(
    ("network", "half", "warned"),
    [("RN50", True, True), ("RN50-quickgelu", True, False), ("RN50", False, False)],
)
def test_weights_like_openais_are_warned_of_under_the_plain_name(
    network, half, warned, towers, tmp_path, monkeypatch, capsys
):
    """OpenAI's load into towers without QuickGELU, too; theirs were stored in half precision."""
    small = vision_language._SMALL["small-vit"]
    monkeypatch.setitem(vision_language._SMALL, "RN50", small)
    monkeypatch.setitem(vision_language._SMALL, "RN50-quickgelu", {**small, "quick_gelu": True})
    state = {name: value.clone() for name, value in towers.state_dict().items()}
    if half:
        state = {name: value.half().to(value.dtype) for name, value in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    build_towers(settings_of(network=network, weights=str(tmp_path / "model.safetensors")))
    said = capsys.readouterr().out
    assert ("set network: RN50-quickgelu" in said) == warned
