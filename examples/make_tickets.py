"""Write invented support tickets in Portuguese, noisy as people write them.

Templates with slots, and over them what real tables have: missing accents, typos, emoji, quotes,
line breaks within a field, capitals. No ticket is anybody's. In some of them the words alone do not
tell what is meant: "o pedido chegou, mas a fatura não" is about a bill, the reverse about a parcel,
and what is well is said beside what is not. Some labels are wrong, as they are in real tables.

    python examples/make_tickets.py tickets

writes `tickets.csv` (id, text, label), `held_out.csv` of the same kind, `more.txt` without labels,
and `tickets_excel.csv`, the first as Excel would in Portugal: semicolons, cp1252, other names.
"""

import argparse
import csv
import random
import unicodedata
from pathlib import Path

TEMPLATES = {
    "entrega": (
        "{oi}o {coisa} que comprei {quando} ainda não chegou",
        "{oi}comprei um {coisa} {quando} e o rastreio não anda",
        "o {coisa} chegou com a caixa amassada, o que eu faço?",
        "{oi}a transportadora diz que entregou o {coisa}, mas ninguém recebeu",
        "a fatura chegou {quando}, mas o {coisa} não",
        "recebi a cobrança e não recebi o {coisa}",
        "{oi}moro em {cidade} e quero saber quando chega o {coisa}",
        "veio o produto errado, pedi um {coisa}",
    ),
    "cobrança": (
        "{oi}fui cobrado duas vezes pelo {coisa}",
        "o valor na fatura está errado, paguei {valor} {quando}",
        "{oi}o boleto de {valor} já foi pago e continua em aberto",
        "não reconheço a compra de {valor} no meu cartão",
        "o {coisa} chegou {quando}, mas a fatura não",
        "recebi o {coisa} e não recebi a cobrança",
        "{oi}quero a segunda via da fatura de {valor}",
        "o desconto do {coisa} não entrou na conta",
    ),
    "acesso": (
        "{oi}não consigo entrar na minha conta desde {quando}",
        "esqueci a senha e o e-mail não chega",
        "{oi}o aplicativo fecha quando abro a página do {coisa}",
        "minha conta foi bloqueada {quando}, como desbloqueio?",
        "o código de confirmação não funciona em {cidade}",
        "{oi}troquei de celular e perdi o acesso",
    ),
    "cancelamento": (
        "{oi}quero cancelar o {coisa} que comprei {quando}",
        "desisti da compra, quero meus {valor} de volta",
        "{oi}por favor encerrem a minha conta",
        "não quero mais o {coisa}, como devolvo?",
        "cansei de esperar, cancelem tudo",
    ),
}
# The class that a company would rather not miss is the rare one.
SHARES = {"entrega": 40, "cobrança": 30, "acesso": 22, "cancelamento": 8}
# Of those whose label was drawn anew; some of them get the right one.
MISLABELLED = 0.03
SLOTS = {
    "oi": ("", "", "", "oi, ", "olá! ", "bom dia, ", "boa tarde. ", "gente, "),
    "coisa": ("fogão", "celular", "tênis", "sofá", "livro", "relógio", "ventilador", "colchão"),
    "quando": ("ontem", "na terça", "há dez dias", "em março", "semana passada", "no sábado"),
    "cidade": ("Belém", "São Luís", "Goiânia", "Coimbra", "Maceió", "Évora"),
    "valor": ("R$ 39,90", "R$ 120", "R$ 1.250,00", "89 reais", "€ 45"),
}
# What is well and is said beside it has the words of another class.
ASIDES = (
    "o {coisa} chegou bem",
    "a fatura está certa",
    "o boleto de {valor} está pago",
    "o acesso à conta funciona",
    "a senha eu lembro",
    "cancelar eu não quero",
    "a entrega foi rápida",
)
ENDINGS = ("", "", "", ".", "...", "!!", " obrigada", ' o site só diz "aguarde"', " {number}")
EMOJI = (" 😡", " 🙏", " 😢", " 📦")


def noisy(text: str, draw: random.Random) -> str:
    """Write a text as somebody in a hurry would."""
    if draw.random() < 0.3:
        letters = unicodedata.normalize("NFD", text)
        text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
        at = draw.randrange(1, len(text) - 1)
        text = text[:at] + draw.choice(("", text[at] * 2, draw.choice("aeionrst"))) + text[at + 1 :]
    if draw.random() < 0.15:
        text = text.replace(", ", ",\n", 1)
    if draw.random() < 0.08:
        text = text.upper()
    return text + (draw.choice(EMOJI) if draw.random() < 0.15 else "")


def ticket(label: str, draw: random.Random) -> str:
    """Return a text of a class."""
    template = draw.choice(TEMPLATES[label])
    if draw.random() < 0.5:
        order = draw.choice(("{0}, mas {1}", "{1}. {0}", "{0}. {1}"))
        template = order.format(draw.choice(ASIDES), template.removeprefix("{oi}"))
    template += draw.choice(ENDINGS)
    slots = {name: draw.choice(values) for name, values in SLOTS.items()}
    return noisy(template.format(**slots, number=f"pedido {draw.randrange(10**5, 10**6)}"), draw)


def tickets(count: int, seed: int) -> list[tuple[str, str]]:
    """Return texts with their labels."""
    draw = random.Random(seed)
    names, shares = list(SHARES), list(SHARES.values())
    labels = draw.choices(names, weights=shares, k=count)
    texts = [ticket(label, draw) for label in labels]
    found = [draw.choice(names) if draw.random() < MISLABELLED else label for label in labels]
    return list(zip(texts, found, strict=True))


def numbered(rows: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
    """Number the rows."""
    return [(number, *row) for number, row in enumerate(rows, start=1)]


def write(folder: str | Path, count: int = 600, seed: int = 0) -> None:
    """Write the four files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labelled = tickets(count, seed)
    for name, rows in (("tickets", labelled), ("held_out", tickets(count // 3, seed + 1))):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "text", "label"), *numbered(rows)])
    more = [" ".join(text.split()) for text, _ in tickets(5 * count, seed + 2)]
    (folder / "more.txt").write_text("\n".join(more), encoding="utf-8")
    name = folder / "tickets_excel.csv"
    # There are no emoji in cp1252, and Excel writes a question mark.
    with open(name, "w", encoding="cp1252", errors="replace", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([("número", "mensagem", "categoria"), *numbered(labelled)])


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Write invented tickets in Portuguese.")
    arguments.add_argument("folder", help="where the four files go")
    arguments.add_argument("--count", type=int, default=600, help="labelled tickets")
    arguments.add_argument("--seed", type=int, default=0, help="fixes what is drawn")
    options = arguments.parse_args()
    write(options.folder, options.count, options.seed)
