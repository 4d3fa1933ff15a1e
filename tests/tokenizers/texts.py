"""Texts that are hard to tokenise."""

from __future__ import annotations

import random

ENGLISH = (
    "The quick brown fox jumps over the lazy dog. Tokenization isn't trivial: naïve approaches don't handle "
    "unrecognised words, e.g. 'pre-training' or \"fine-tuning\". In 2019, models had 110 million parameters."
)
CHINESE = (
    "北京是中华人民共和国的首都。我们在2008年看了奥运会，真的很好看！“你好”，他说；今天天气不错（大约25度）。"
)

TEXTS = [
    "",
    " ",
    "\n",
    "\t \u3000\xa0 ",
    ENGLISH,
    CHINESE,
    ENGLISH + CHINESE,
    "BERT模型在ImageNet上fine-tune了3个epoch",
    "Ünïcödé àccénts résumé Ångström İstanbul ΑΣ ſ ß ﬁ ① ２０２０年 ｆｕｌｌ",
    "e\u0301 a\u030a\u0327 我\u0301们 가각 각",
    "emoji 😀👍🏽👨‍👩‍👧‍👦🇨🇳 ❤️ end",
    "control \x00\x01\x1f\x7f\x80\x9f\ufffd\ufeff\u200b\u200d\xad chars",
    "a\x85b\u2028c\u2029d\x1ce",
    "русский текст, العربية, עברית, हिन्दी, ภาษาไทย, 日本語のテキスト、カタカナ, 한국어",
    "≠ ; ´ 豈 更 車 丽 𠀀𪜶 〇 々 ㈱ ㍿",
    "tabs\tand  double   spaces \r\n lines\n\nmore ",
    "https://example.com/a_b?c=d&e=%20#f <html>&amp;</html> x@y.z",
    "$100 + 50% = `code` ^caret ~tilde | pipe \\ slash",
    "x" * 100,
    "y" * 101,
    "一" * 300,
    "?!" * 50,
    "a" * 50 + "我" + "b" * 60,
    "[mask] [ MASK ] [MASK ##s ##ing [unused1]",
    "’s “t” …—–·、。《》",
    "it's we've I'm they'll he'd can't 'S 'T",
    "\u0300",
    "a\u0300",
]


def random_texts(number: int, seed: int) -> list[str]:
    """Strings over every part of Unicode, with words and marks of the texts above between."""
    choose = random.Random(seed)
    alphabet = sorted(set("".join(TEXTS))) + list("     abcdeABCDE的一是不,.!")
    planes = [(0x20, 0x250), (0x250, 0x3000), (0x3000, 0xA000), (0xA000, 0xD800), (0xE000, 0x30000)]
    texts = []
    for _ in range(number):
        text = ""
        for _ in range(choose.randrange(60)):
            text += (
                choose.choice(alphabet)
                if choose.random() < 0.85
                else chr(choose.randrange(*choose.choice(planes)))
            )
        texts.append(text)
    return texts
