"""Small tokenizers in the Hugging Face format."""

import json
from pathlib import Path


def write_tokenizer(folder: Path, kind: str) -> Path:
    """A small tokenizer with its configuration, as SigLIP's ("pieces") or as BERT's ("words")."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    folder.mkdir()
    corpus = ["a photo of a cat and a dog", "the grass, the sky; a house by the water", "caf\u00e9 au lait"] * 3
    if kind == "pieces":
        found = tokenizers.Tokenizer(models.Unigram())
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=list(special.values()), unk_token="<unk>")
        template = ("$A </s>", ["</s>"])
    else:
        found = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        found.normalizer = normalizers.BertNormalizer()
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(special.values()))
        template = ("[CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    found.train_from_iterator(corpus, trainer)
    names = [(name, found.token_to_id(name)) for name in template[1]]
    found.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=names)
    found.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
