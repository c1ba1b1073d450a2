"""Write fastai_tokens.json: the tokens of fastai's own tokenizer, for texts with odd corners.

Run it with an interpreter that has fastai: `python tests/data/make_fastai_tokens.py`. The texts
hold no remains of HTML entities, where ours differs on purpose.
"""

import json
import random
from pathlib import Path

TEXTS = [
    "I AM SO HAPPY!!!! Soooooo good",
    "the the the the cat",
    "It's John's U.S.A. NASA",
    '"Great" (Bad)',
    "",
    " ",
    "\n",
    "  two  blanks \n\n and\tlines\r\n",
    "a \n \n b",
    "e.g. Mr. Smith's 10km run cost $3.50, i.e. 5% :-) ...",
    "don't can't cannot won't we\u2019ve I'M I'm",
    "well-known and/or C:\\temp #1 foo_bar x=y http://example.com/a?b=c#d",
    "A I b . A. I, X-ray iPhone McDonald PYTHON3 \u00c9T\u00c9 \u00c9t\u00e9 \u0130stanbul",
    "yesss yesss yesss no no no! no no nothing - - - a THE THE THE The The the the",
    "3 @.@ 5 well @-@ known 1 @,@ 000 <unk> x<unk>y",
    'a<br />b<BR>c a\\nb \\"c\\"',
    "xxbos xxpad's XXUP xxmaj The xxunk",
    "\u54c8\u54c8\u54c8 \u4f60\u597d na\u0301ve \U0001f600\U0001f600\U0001f600",
    "\u00a0x\u00a0\u00a0y",
    "a\0b \u2028c \ufeffd",
    "1 1 1 1 22 22 22 aaa aaaa bbb/bbb 1,250 10:30 2nd .5 [..] ?!?!?!",
    "no no no no\nno no no",
]
WORDS = (
    "the The THE a A I no NO No cat's dog's don't Can't WON'T e.g. U.S.A. Mr. 3.14 1,000 5% $9 10km"
    ' well-known and/or #1 C:\\x (Bad) "Great" \'tis ... .. !!! ?? soooo AAAA Yesss naïve ÉTÉ Été'
    " 你好 哈哈哈 :-) :) <br /> <unk> @-@ @.@ xxbos xxmaj http://a.b/c?d=e foo_bar x=y - -- --- — …"
    ' iPhone McDonald PYTHON3 A. B, x 1 22 \\n \\" ½ km² straße ß İ'
).split(" ")
GAPS = [" "] * 12 + ["  ", "\n", " \n ", "\t", "", "\u00a0", "\r\n", "\n\n\n"]


def fuzz(count: int, seed: int = 0) -> list[str]:
    """Return random texts of words and gaps that the rules look at."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(1, 14))
        if draw.random() < 0.5:
            place = draw.randrange(len(words))
            words[place:place] = [words[place]] * draw.randint(1, 4)
        texts.append("".join(word + draw.choice(GAPS) for word in words))
    return texts


def main() -> None:
    """Write the file."""
    from fastai.text.core import SpacyTokenizer, TokenizeWithRules

    tokenize = TokenizeWithRules(tok=SpacyTokenizer())
    texts = TEXTS + fuzz(250)
    rows = [
        {"text": text, "tokens": list(tokens)}
        for text, tokens in zip(texts, tokenize(texts), strict=True)
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    path = Path(__file__).with_name("fastai_tokens.json")
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
