"""The methods against their formulas, written plainly, and what they refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip
from plain_text_tower import plain_prompts, plain_text_features
from prompt_tuning import CLASSES
from transformers import SiglipConfig, SiglipModel

from sdsclip_hf.prompts.methods import METHODS, make_learner
from sdsclip_hf.prompts.settings import PromptSettings

NAMES = ["circle", "square", "red star"]  # as they stand in prompts
LABELS = torch.tensor([2, 0, 1])


def plain_loss(images, texts, scale, labels):
    """Cross-entropy of cosines (B, D) with (B, C, D), image by image, from its definition."""
    losses = []
    for image, of_image, label in zip(images, texts, labels, strict=True):
        logits = scale * of_image @ image
        losses.append(logits.logsumexp(0) - logits[label])
    return torch.stack(losses).mean()


def image_features(clip, pixels):
    return F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1).detach()


def gradients(learner, loss) -> dict[str, torch.Tensor]:
    parameters = learner.trained_parameters()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_same_gradients(learner, found, expected):
    found, expected = gradients(learner, found), gradients(learner, expected)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert (found[name] - gradient).norm() <= 2e-5 * gradient.norm(), name


@pytest.mark.parametrize("chunk", [1, 256])
@pytest.mark.parametrize("eos", ["its own", 2])  # OpenAI's configurations have 2, and the tower then looks otherwise
@pytest.mark.parametrize(
    "position, text",
    [("end", "a red cross of {}."), ("middle", "a red {} cross of."), ("front", "{} a red cross of.")],
)
def test_words_in_the_place_of_vectors_give_the_features_of_the_words(student, position, text, eos, chunk):
    clip, processor = copy.deepcopy(student[0]), student[1]
    if eos == 2:
        clip.text_model.eos_token_id = clip.config.text_config.eos_token_id = 2
    settings = PromptSettings("coop", None, "a red cross of", class_token_position=position, prompt_chunk_size=chunk)
    learner = make_learner(clip, processor.tokenizer, CLASSES, settings).eval()
    words = [text.format(name) for name in NAMES]
    inputs = processor.tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = F.normalize(clip.get_text_features(**inputs).pooler_output, dim=-1)
        assert (learner.fixed_text_embeds()[0] - expected).abs().max() < 1e-6
    assert learner._texts.input_ids.shape[1] < 12  # as long as the longest prompt


@pytest.mark.parametrize("chunk", [2, 256])
@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_and_kgcoop_have_the_loss_and_the_gradient_of_their_formulas(learner, pixels, class_specific, chunk):
    for method in ("coop", "kgcoop"):
        options = {"class_specific": class_specific, "prompt_chunk_size": chunk, "knowledge_weight": 3.0}
        ours = learner(method, context_init="random", context_length=4, **options).train()
        clip, tokenizer = ours.clip, ours.text.tokenizer
        contexts = ours.context if class_specific else ours.context.expand(3, -1, -1)
        prompts = [plain_prompts(clip, tokenizer, [name], own) for name, own in zip(NAMES, contexts, strict=True)]
        texts = torch.cat([plain_text_features(clip, *prompt) for prompt in prompts])
        images = image_features(clip, pixels)
        expected = plain_loss(images, texts.expand(3, -1, -1), clip.logit_scale.exp(), LABELS)
        if method == "kgcoop":
            inputs = tokenizer([f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt")
            written = clip.get_text_features(**inputs).pooler_output
            expected = expected + 3 * (1 - F.cosine_similarity(texts, written).mean())
        output = ours(pixels, LABELS)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_same_gradients(ours, output.loss, expected)


@pytest.mark.parametrize("chunk", [4, 256])
def test_cocoop_over_a_batch_is_the_published_loop_over_images(learner, pixels, chunk):
    ours = learner("cocoop", prompt_chunk_size=chunk).train()
    clip, tokenizer = ours.clip, ours.text.tokenizer
    images = image_features(clip, pixels)
    texts = []
    for image in images:
        shift = ours.meta_net[2](F.relu(ours.meta_net[0](image)))
        prompts, ends = plain_prompts(clip, tokenizer, NAMES, ours.context + shift)
        texts.append(plain_text_features(clip, prompts, ends))
    expected = plain_loss(images, texts, clip.logit_scale.exp(), LABELS)
    output = ours(pixels, LABELS)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, output.loss, expected)


def plain_attributes(ours, pixels):
    """A(x): the image tower layer by layer, with tokens of its own in the first two."""
    tower, tokens = ours.clip.vision_model, ours.visual_tokens.tokens
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    patches = states.shape[1]
    for number, layer in enumerate(tower.encoder.layers):
        if number < 2:
            states = torch.cat([states[:, :patches], tokens[number].expand(len(pixels), -1, -1)], 1)
        states = layer(states, None)
    features = ours.clip.visual_projection(tower.post_layernorm(states[:, 0]))
    return F.normalize(features, dim=-1) @ ours.to_token.weight.T + ours.to_token.bias


def plain_attention(ours, pixels):
    """Multi-head attention of the context to the patches, from the weights."""
    part, context = ours.attention, ours.context
    width, heads = context.shape[1], part.num_heads
    patches = ours.clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    weights = part.in_proj_weight.chunk(3) if part.in_proj_weight is not None else None
    weights = weights or (part.q_proj_weight, part.k_proj_weight, part.v_proj_weight)
    biases = part.in_proj_bias.chunk(3)
    found = []
    for own in patches:
        q, k, v = (x @ w.T + b for x, w, b in zip((context, own, own), weights, biases, strict=True))
        q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
        mixed = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(-1) @ v
        found.append(mixed.transpose(0, 1).reshape(len(context), width) @ part.out_proj.weight.T + part.out_proj.bias)
    return torch.stack(found)


@pytest.mark.parametrize("attention", ["plain", "residual", "none"])
@pytest.mark.parametrize("space", ["token", "feature"])
def test_intcoop_has_the_loss_and_the_gradient_of_its_formula(learner, pixels, attention, space):
    options = {"attribute_weight": 2.0, "regularizer_weight": 3.0, "prompt_chunk_size": 4, "visual_token_layers": 2}
    ours = learner("intcoop", context_attention=attention, attribute_space=space, **options).train()
    clip, tokenizer = ours.clip, ours.text.tokenizer
    told = ["red", "green", "light blue"]
    found, images = plain_attributes(ours, pixels), image_features(clip, pixels)
    contexts = ours.context.expand(3, -1, -1)
    if attention != "none":
        seen = plain_attention(ours, pixels)
        contexts = contexts + seen if attention == "residual" else seen
    texts = []
    for context, attribute in zip(contexts, found, strict=True):
        prompts, ends = plain_prompts(clip, tokenizer, NAMES, torch.cat([context, attribute[None]]))
        texts.append(plain_text_features(clip, prompts, ends))

    def native(words):
        inputs = tokenizer(words, padding=True, return_tensors="pt")
        return F.normalize(clip.get_text_features(**inputs).pooler_output, dim=-1)

    table = clip.text_model.embeddings.token_embedding.weight
    wanted = native(told)
    if space == "token":
        wanted = torch.stack([table[tokenizer(word, add_special_tokens=False).input_ids].mean(0) for word in told])
    written = native([f"a photo of a {word} {NAMES[label]}." for word, label in zip(told, LABELS, strict=True)])
    own = torch.stack([texts[row][label] for row, label in enumerate(LABELS)])
    expected = plain_loss(images, texts, clip.logit_scale.exp(), LABELS)
    expected = expected + 2 * (found - wanted).square().sum(1).mean() + 3 * (own - written).square().sum(1).mean()
    output = ours(pixels, LABELS, told)
    assert set(output.terms) == {"cross_entropy", "attribute", "regularizer"}
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, output.loss, expected)
    with torch.no_grad():  # neither labels nor attributes are needed to classify
        assert torch.equal(ours.eval()(pixels).logits, output.logits.detach())


def test_memory_for_activations_is_bounded_by_the_chunk(learner, pixels):
    names = [f"{color} {number}" for color in ("red", "blue") for number in range(60)]

    def kept(chunk: int) -> int:
        """Bytes that a pass keeps for its backward pass, but for what a chunk keeps while it is computed again."""
        ours, sizes = learner("cocoop", names, prompt_chunk_size=chunk).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.nbytes) or one, lambda one: one):
            ours(pixels, LABELS)
        return sum(sizes)

    assert kept(30) < kept(360) / 20


@pytest.mark.parametrize("method", METHODS)
def test_classes_may_change_and_clip_stays_as_it_is(student, learner, pixels, method):
    ours = learner(method)
    before = {name: one.clone() for name, one in student[0].state_dict().items()}
    alone = learner(method, ["star", "cross", "blue_triangle", "circle"]).eval()
    alone.load_state_dict(ours.state_dict())
    torch.optim.SGD(ours.trained_parameters().values(), 1.0).step()
    with torch.no_grad(), ours.eval().for_classes(alone.class_names):
        assert torch.allclose(ours(pixels).logits, alone(pixels).logits, atol=1e-5)
    assert ours(pixels).logits.shape == (3, 3)
    assert not any(one.requires_grad for one in ours.clip.parameters())
    assert all(torch.equal(one, before[name]) for name, one in ours.clip.state_dict().items())


def test_features_of_fixed_prompts_are_computed_once_and_anew_when_the_context_moves(learner, pixels, monkeypatch):
    ours, calls = learner("coop").eval(), []
    encode = ours.text._encode
    monkeypatch.setattr(ours.text, "_encode", lambda *args: calls.append(1) or encode(*args))
    with torch.no_grad():
        first = [ours(pixels).logits for _ in range(3)]
        assert len(calls) == 1
        ours.context.add_(0.1)
        assert not torch.equal(ours(pixels).logits, first[0]) and len(calls) == 2
        ours.set_classes(["star", "cross"])
        assert ours(pixels).logits.shape == (3, 2) and len(calls) == 3


def test_what_trains_stays_in_float32_under_autocast(learner, pixels):
    for method in ("kgcoop", "intcoop"):
        ours = learner(method, prompt_chunk_size=4).train()
        with torch.autocast("cpu", torch.bfloat16):
            output = ours(pixels, LABELS, ["red", "blue", "green"])
        assert output.logits.dtype == output.loss.dtype == torch.float32
        assert all(gradient.dtype == torch.float32 for gradient in gradients(ours, output.loss).values())


@pytest.mark.parametrize(
    "method, classes, options, message",
    [
        ("coup", CLASSES, {}, "unknown method 'coup'; set --method to one of coop, cocoop, kgcoop, intcoop"),
        ("coop", ["circle"], {}, "there is 1 class .circle."),
        ("coop", ["a_b", "a b", "c"], {}, "the class name 'a b' stands twice"),
        ("coop", ["circle", " "], {}, "class 1 has the name ' '"),
        (
            "coop",
            ["circle", "red " * 75],
            {},
            "has 75 tokens, which with 5 learned vectors makes a prompt of 83; the text",
        ),
        ("coop", CLASSES, {"context_length": 4}, "'a photo of a' has 5 tokens, and context_length is 4; leave"),
        ("coop", CLASSES, {"context_init": ""}, "'' has no token"),
        ("cocoop", CLASSES, {"class_specific": True}, "class_specific has no meaning for cocoop"),
        ("intcoop", CLASSES, {"class_token_position": "front"}, "intcoop puts the attribute before"),
    ],
)
def test_what_does_not_fit_is_told(learner, method, classes, options, message):
    with pytest.raises(ValueError, match=message):
        learner(method, classes, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_token_position": "top"}, "'top'; set --class_token_position to one of end, middle, front"),
        ({"context_length": 0}, "context_length is 0; set --context_length to 1"),
        ({"knowledge_weight": -1}, "knowledge_weight is -1; set --knowledge_weight"),
        ({"template": "a photo"}, "the prompt template 'a photo' has 0 places {}"),
    ],
)
def test_settings_outside_their_range_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        PromptSettings(**options)


def test_class_specific_contexts_serve_no_other_classes(learner):
    ours = learner("coop", class_specific=True)
    with pytest.raises(
        ValueError, match=r"a context for each of 3 classes .circle, square, red_star. and none for star"
    ):
        ours.set_classes(["star", "cross"])


def test_prompts_of_images_have_no_features_of_their_own(learner):
    with pytest.raises(ValueError, match="the prompts of cocoop hang on the image"):
        learner("cocoop").fixed_text_embeds()


def test_only_a_clip_can_have_prompts(student):
    tower = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    other = SiglipModel(SiglipConfig(text_config=tower, vision_config=tower))
    with pytest.raises(ValueError, match="a SiglipModel cannot have learned prompts"):
        make_learner(other, student[1].tokenizer, CLASSES, PromptSettings())


def test_attributes_by_text_features_need_one_width(student):
    settings = PromptSettings("intcoop", context_init="random", context_length=1, attribute_space="feature")
    with pytest.raises(ValueError, match=r"12 and 16 wide. Set --attribute_space token"):
        make_learner(make_clip(), student[1].tokenizer, CLASSES, settings)
