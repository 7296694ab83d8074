"""Writes texts with planted personal data: valid items of each kind, in 8 written forms and 5 locales.

Check digits are computed here, by the published rules: Luhn (ISO/IEC 7812-1), modulo 97 (ISO 7064), GB 11643-1999 for
Chinese identity numbers, ISO 7064 modulo 11, 10 for German tax numbers, INSEE's key, the letter of a Spanish DNI.
"""

import string
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

LOCALES = ("en_US", "zh_CN", "de_DE", "fr_FR", "es_ES")
FORMS = 8
NBSP = "\u00a0"
NAMES = (
    "John Smith",
    "Mary O'Brien",
    "Anna-Lena Vogt",
    "Jean Dupont",
    "María García",
    "José Núñez",
    "王小明",
    "欧阳娜娜",
)

_SENTENCES = {
    "en_US": ("You can reach me at {} any time.", "My details: {}, thanks!", "He wrote {} on the form ({} times)."),
    "zh_CN": ("请联系{}，谢谢。", "我的信息是{}。", "他在表格上写了 {} 两次。"),
    "de_DE": ("Erreichbar bin ich unter {}, danke.", "Meine Angaben: {}.", "Er schrieb {} auf das Formular."),
    "fr_FR": ("Vous pouvez noter {}, merci.", "Mes informations : {} !", "Il a écrit {} sur le formulaire."),
    "es_ES": ("Puede anotar {}, gracias.", "Mis datos: {}.", "Escribió {} en el formulario."),
}


class Planted(NamedTuple):
    """Text with one item.

    Attributes:
        text: Text.
        start: Offset of the item.
        end: Offset after the item.
        kind: Kind of the item.
        locale: Locale of the sentence and of national numbers.
        form: Number of the written form, below `FORMS`.
    """

    text: str
    start: int
    end: int
    kind: str
    locale: str
    form: int


def planted(kind: str, number: int, seed: int = 0) -> Iterator[Planted]:
    """Yields texts with one item of a kind each, evenly over forms and locales."""
    random = Random(f"{kind} {seed}")
    for index in range(number):
        form, locale = index % FORMS, LOCALES[index // FORMS % len(LOCALES)]
        before, item, after = _WRITERS[kind](random, locale, form)
        sentence = random.choice(_SENTENCES[locale]).replace("({} times)", "(two times)")
        head, tail = sentence.split("{}")
        start = len(head) + len(before)
        yield Planted(head + before + item + after + tail, start, start + len(item), kind, locale, form)


Written = tuple[str, str, str]
"""Text before an item, the item, and text after it."""


def _digits(random: Random, count: int, first: str = "0123456789") -> str:
    return random.choice(first) + "".join(random.choice(string.digits) for _ in range(count - 1))


def _word(random: Random, least: int = 4) -> str:
    return "".join(random.choice(string.ascii_lowercase) for _ in range(random.randint(least, least + 5)))


def _grouped(digits: str, sizes: tuple[int, ...], separator: str) -> str:
    pieces, done = [], 0
    for size in sizes:
        pieces.append(digits[done : done + size])
        done += size
    return separator.join(piece for piece in [*pieces, digits[done:]] if piece)


def _wide(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) if character.isdigit() else character for character in text)


def luhn_digit(digits: str) -> str:
    """Returns the check digit of Luhn's formula."""
    doubled = [int(digit) * (2 if index % 2 == 0 else 1) for index, digit in enumerate(reversed(digits))]
    return str(-sum(sum(divmod(value, 10)) for value in doubled) % 10)


def _email(random: Random, locale: str, form: int) -> Written:
    local, host = f"{_word(random)}.{_word(random)}", f"{_word(random)}.{random.choice(['com', 'org', 'net', 'io'])}"
    return (
        ("", f"{local}@{host}", ""),
        ("", f"{local}+tag{_digits(random, 2)}@{host}", ""),
        ("", f"{_word(random)}_{_digits(random, 3)}@mail.{_word(random)}.co.uk", ""),
        ("", f"{local}@{host}".upper(), ""),
        ("<mailto:", f"{local}@{host}", ">"),
        ("", f"{local} (at) {_word(random)} (dot) com", ""),
        ("", f"{_word(random)}＠{host}", ""),
        ('"', f"{_digits(random, 9, '123456789')}@{_word(random)}-{_word(random)}.cn", '"'),
    )[form]


def _phone(random: Random, locale: str, form: int) -> Written:
    return "", _PHONES[locale](random)[form], ""


def _us_phone(random: Random) -> tuple[str, ...]:
    area = random.choice(("212", "415", "312", "617", "206", "303", "512", "718"))
    middle, last = random.choice("2345678") + _digits(random, 2, "023456789"), _digits(random, 4)
    middle = middle if not middle.endswith("11") else "555"
    return (
        f"({area}) {middle}-{last}", f"{area}-{middle}-{last}", f"{area}.{middle}.{last}", f"{area}{middle}{last}",
        f"+1 {area} {middle} {last}", f"+1{area}{middle}{last}", f"001 {area} {middle} {last}",
        f"1-{area}-{middle}-{last}",
    )  # fmt: skip


def _cn_phone(random: Random) -> tuple[str, ...]:
    mobile = random.choice(("138", "139", "136", "150", "186", "189", "133", "158")) + _digits(random, 8)
    city, line = random.choice(("010", "021", "020")), random.choice("68") + _digits(random, 7)
    spaced = _grouped(mobile, (3, 4), " ")
    return (
        mobile, spaced, spaced.replace(" ", "-"), f"+86 {spaced}", f"+86{mobile}", f"0086 {mobile}",
        f"{city}-{line}", _wide(mobile),
    )  # fmt: skip


def _de_phone(random: Random) -> tuple[str, ...]:
    code, line = random.choice(("151", "160", "170", "171", "175")), _digits(random, 8 if random.random() < 0 else 7)
    line = line + random.choice(string.digits) if code == "151" else line
    return (
        f"0{code} {line}", f"0{code}/{line}", f"0{code}-{line}", f"0{code}{line}", f"+49 {code} {line}",
        f"+49{code}{line}", f"0049 {code} {line}", f"+49 (0)30 {_digits(random, 7, '2345678')}",
    )  # fmt: skip


def _fr_phone(random: Random) -> tuple[str, ...]:
    pairs = ["6" if random.random() < 0.5 else "1", "42" if random.random() < 0.5 else "45"]
    pairs += [_digits(random, 2) for _ in range(3)]
    national = ["0" + pairs[0], *pairs[1:]]
    return (
        " ".join(national), ".".join(national), "-".join(national), "".join(national), "+33 " + " ".join(pairs),
        "+33" + "".join(pairs), "0033 " + " ".join(pairs), f"+33{NBSP}(0){NBSP.join(pairs)}",
    )  # fmt: skip


def _es_phone(random: Random) -> tuple[str, ...]:
    mobile = "6" + _digits(random, 8, "1235")
    threes, pairs = _grouped(mobile, (3, 3), " "), _grouped(mobile, (3, 2, 2), " ")
    return (
        threes, pairs, threes.replace(" ", "-"), mobile, f"+34 {threes}", f"+34{mobile}", f"0034 {threes}",
        f"91 {_digits(random, 3, '2345678')} {_digits(random, 2)} {_digits(random, 2)}",
    )  # fmt: skip


_PHONES: dict[str, Callable[[Random], tuple[str, ...]]] = {
    "en_US": _us_phone,
    "zh_CN": _cn_phone,
    "de_DE": _de_phone,
    "fr_FR": _fr_phone,
    "es_ES": _es_phone,
}


def _card(random: Random, locale: str, form: int) -> Written:
    def number(prefixes: tuple[str, ...], length: int) -> str:
        prefix = random.choice(prefixes)
        body = prefix + _digits(random, length - 1 - len(prefix))
        return body + luhn_digit(body)

    visa, master = number(("4",), 16), number(("51", "53", "55", "2221", "2700"), 16)
    amex, union = number(("34", "37"), 15), number(("6222", "6217", "6228"), 19)
    return (
        ("", _grouped(visa, (4, 4, 4), " "), ""),
        ("", _grouped(master, (4, 4, 4), "-"), ""),
        ("(", visa, ")"),
        ("", _grouped(amex, (4, 6), " "), ""),
        ("", amex, ""),
        ("", _grouped(union, (4, 4, 4, 4), " "), ""),
        ("", union, ""),
        ("", _wide(_grouped(master, (4, 4, 4), NBSP)), ""),
    )[form]


def _iban(random: Random, locale: str, form: int) -> Written:
    country = {"en_US": "GB", "zh_CN": "CH", "de_DE": "DE", "fr_FR": "FR", "es_ES": "AT"}[locale]
    letters = "".join(random.choice(string.ascii_uppercase) for _ in range(4))
    account = {
        "GB": letters + _digits(random, 14),
        "CH": _digits(random, 17),
        "DE": _digits(random, 18),
        "FR": _digits(random, 10) + letters[:2] + _digits(random, 11),
        "AT": _digits(random, 16),
    }[country]
    as_number = "".join(str(int(character, 36)) for character in account + country + "00")
    compact = f"{country}{98 - int(as_number) % 97:02}{account}"
    grouped = _grouped(compact, (4,) * 8, " ")
    return (
        ("", grouped, ""),
        ("", compact, ""),
        ("", grouped.replace(" ", "-"), ""),
        ("", compact.lower(), ""),
        ("IBAN: ", grouped.replace(" ", NBSP), ""),
        ("(", compact, ")"),
        ("", grouped, " BANK"),
        ("IBAN:", compact, ""),
    )[form]


def _ip(random: Random, locale: str, form: int) -> Written:
    four = ".".join(str(random.randint(low, 223)) for low in (1, 0, 0, 1))
    four = "8" + four[3:] if four.startswith("127.") else four
    groups = [f"{random.randint(0x1000, 0xFFFF):x}" for _ in range(6)]
    six = "2001:db8:" + ":".join(groups)
    return (
        ("", four, ""),
        ("", four, ":8080"),
        ("[", four, "]"),
        ("", four, "/24"),
        ("IP=", four, ""),
        ("", six, ""),
        ("", f"2001:db8::{groups[0]}:{groups[1]}", ""),
        ("[", six.upper(), "]:443"),
    )[form]


def _url_user(random: Random, locale: str, form: int) -> Written:
    name, host = f"{_word(random)}{_digits(random, 2)}", f"{_word(random)}.org"
    return "", (
        f"https://{name}:{_word(random)}@{host}/path",
        f"https://twitter.com/{name}",
        f"https://github.com/{name}/{_word(random)}",
        f"http://www.{host}/~{name}/index.html",
        f"https://{host}/users/{name}",
        f"https://{host}/@{name}",
        f"https://{host}/view?id=3&user={name}",
        f"www.linkedin.com/in/{name}",
    )[form], ""  # fmt: skip


def _national_id(random: Random, locale: str, form: int) -> Written:
    digits, sizes = _IDENTITIES[locale](random)
    if locale == "en_US":
        written = [_grouped(digits, sizes, "-"), _grouped(digits, sizes, " "), digits, _grouped(digits, sizes, NBSP)]
        return ("SSN " if form % 4 == 2 else "" if form < 4 else "(", written[form % 4], "" if form < 4 else ")")
    written = [digits, _grouped(digits, sizes, " "), _grouped(digits, sizes, "-"), _wide(digits)]
    return ("" if form < 4 else "(", written[form % 4], "" if form < 4 else ")")


def _ssn(random: Random) -> tuple[str, tuple[int, ...]]:
    return f"{random.randint(1, 665):03}{random.randint(1, 99):02}{random.randint(1, 9999):04}", (3, 2)


def _resident_id(random: Random) -> tuple[str, tuple[int, ...]]:
    place = random.choice(("110101", "310104", "440305", "330106", "510104"))
    born = f"{random.randint(1940, 2005)}{random.randint(1, 12):02}{random.randint(1, 28):02}"
    body = place + born + _digits(random, 3)
    weighted = sum(int(digit) * 2 ** (17 - index) for index, digit in enumerate(body))
    return body + "10X98765432"[weighted % 11], (6, 8)


def _tax_number(random: Random) -> tuple[str, tuple[int, ...]]:
    # Of the first ten digits, one occurs twice and one not at all; the first is not 0.
    chosen = random.sample(string.digits, 9)
    chosen.append(random.choice(chosen))
    random.shuffle(chosen)
    while chosen[0] == "0":
        random.shuffle(chosen)
    product = 10
    for digit in chosen:
        product = ((product + int(digit)) % 10 or 10) * 2 % 11
    return "".join(chosen) + str((11 - product) % 10), (2, 3, 3)


def _insee_number(random: Random) -> tuple[str, tuple[int, ...]]:
    place = f"{random.choice(['75', '13', '69', '31'])}{random.randint(1, 399):03}"
    body = f"{random.choice('12')}{random.randint(0, 99):02}{random.randint(1, 12):02}{place}{_digits(random, 3)}"
    return f"{body}{97 - int(body) % 97:02}", (1, 2, 2, 2, 3, 3)


def _dni(random: Random) -> tuple[str, tuple[int, ...]]:
    digits = _digits(random, 8)
    return digits + "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23], (8,)


_IDENTITIES: dict[str, Callable[[Random], tuple[str, tuple[int, ...]]]] = {
    "en_US": _ssn,
    "zh_CN": _resident_id,
    "de_DE": _tax_number,
    "fr_FR": _insee_number,
    "es_ES": _dni,
}


def _handle(random: Random, locale: str, form: int) -> Written:
    name = _word(random)
    local = {"zh_CN": "小明同学", "de_DE": "jürgen", "fr_FR": "hélène", "es_ES": "muñoz", "en_US": "mary"}[locale]
    return (
        ("", f"@{name}", ""),
        ("", f"@{name}_{_word(random)}", ""),
        ("", f"@{name}{_digits(random, 2)}", ""),
        ("", f"@{name}.{_word(random)}", ""),
        ("", f"@{name.upper()}", ""),
        (" ", f"@{local}", " "),
        ("(", f"@_{name}", ")"),
        ("\n", f"@{name}", ":"),
    )[form]


def _name(random: Random, locale: str, form: int) -> Written:
    name = random.choice([name for name in NAMES if name.isascii()] if locale == "en_US" else NAMES)
    before, after = (("", ""), ("", "'s"), ("", ","), ("“", "”"), ("(", ")"), ("\n", "\n"), ("", "."), ("*", "*"))[form]
    return before, name, after


_WRITERS: dict[str, Callable[[Random, str, int], Written]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ip": _ip,
    "url_user": _url_user,
    "national_id": _national_id,
    "handle": _handle,
    "name": _name,
}
