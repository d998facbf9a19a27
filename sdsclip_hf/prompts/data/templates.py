"""Hand-written prompts by dataset, as the code of CoOp (github.com/KaiyangZhou/CoOp, trainers/zsclip.py) has them."""

DEFAULT = "a photo of a {}."
TEMPLATES: dict[str, str] = {
    "imagenet": DEFAULT,
    "imagenetv2": DEFAULT,
    "imagenet_sketch": DEFAULT,
    "imagenet_a": DEFAULT,
    "imagenet_r": DEFAULT,
    "caltech101": DEFAULT,
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": DEFAULT,
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": DEFAULT,
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
    "shapes": DEFAULT,
}


def template_of(name_or_template: str) -> str:
    """A template by its dataset's name; a template itself as it is.

    Raises:
        ValueError: it is neither a name nor a text with one ``{}``.
    """
    template = TEMPLATES.get(name_or_template, name_or_template)
    if template.count("{}") != 1:
        raise ValueError(
            f"the prompt template {template!r} has {template.count('{}')} places {{}} for the class; give a text with one, "
            f"such as {DEFAULT!r}, or a name of {', '.join(TEMPLATES)}."
        )
    return template
