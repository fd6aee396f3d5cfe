"""Sentences for tokenizer tests: one in each of PolyLM's 18 languages, and texts that tend to go wrong."""

LANGUAGES = {
    "en": "The quick brown fox doesn't jump over 13 lazy dogs; it's asleep, and they're not.",
    "zh": "北京是中国的首都，人口超过两千万，2008年举办了奥运会。",
    "ru": "Москва является столицей России, и в ней живёт более 13 миллионов человек.",
    "es": "¿Cuándo llegó el niño a la estación? Llegó a las 9:45, según su abuela.",
    "de": "Die Straßenbahn fährt heute über die größte Brücke der Stadt, natürlich verspätet.",
    "fr": "L'été dernier, où étiez-vous allés ? Nous avons passé trois semaines à Nîmes.",
    "it": "Perché l'università è chiusa? È domenica, e c'è lo sciopero dei treni.",
    "pt": "A canção não é só uma lembrança: as crianças cantam-na todas as manhãs.",
    "ja": "東京は日本の首都であり、人口は約1400万人です。カタカナとひらがなも使います。",
    "vi": "Thủ đô của Việt Nam là Hà Nội, nơi có hơn tám triệu người sinh sống.",
    "id": "Ibu kota Indonesia akan dipindahkan ke Nusantara, yang terletak di Kalimantan.",
    "pl": "Zażółć gęślą jaźń: w Szczebrzeszynie chrząszcz brzmi w trzcinie.",
    "nl": "De burgemeester zei gisteren dat de vergadering om half drie 's middags begint.",
    "ar": "القاهرة هي عاصمة مصر، ويعيش فيها أكثر من عشرة ملايين نسمة.",
    "tr": "İstanbul'da yaşayan çocuklar ığdır ağacının altında güneşleniyordu.",
    "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทยและมีประชากรมากกว่าสิบล้านคน",
    "he": "ירושלים היא בירת ישראל, וגרים בה כמיליון תושבים.",
    "ko": "서울은 대한민국의 수도이며 약 940만 명이 살고 있습니다.",
}

AWKWARD = {
    "empty": "",
    "space": " ",
    "leading spaces": "   three spaces first",
    "trailing spaces": "two spaces last  ",
    "runs of spaces": "a  b   c    d     e" + " " * 40 + "f",
    "newlines": "one\ntwo\n\nthree\n\n\nfour\r\nfive\n",
    "tabs": "\tif x:\n\t\treturn\t1\n",
    "code": "def f(x: int) -> dict[str, list[float]]:\n    return {'a': [1.5e-3, -0.0], \"b\": [x**2 % 7]}  # done\n",
    "digits": "0 12 345 6789 1234567890 3.14159 1,000,000 ٣٤٥ ४५६ ½ Ⅻ",
    "contractions": "I'm you're WE'LL they'd it's 'twas o'clock rock'n'roll",
    "markup": '<a href="https://example.org/?q=1&r=2">x</a> <s not a token> <|almost|>',
    "decomposed Vietnamese": "Thu\u0309 đo\u0302 Vie\u0323\u0302t Nam",
    "decomposed Korean": "\u1109\u1165\u110b\u116e\u11af",
    "emoji family": "👩‍👩‍👧‍👦 and 🏳️‍🌈, thumbs 👍🏽, flags 🇻🇳🇹🇭, keycap 3️⃣",
    "joiners": "می‌خواهم क्‍ष नमस्ते",
    "bidirectional": "abc \u202eעברית\u202c (العربية) 123",
    "rare": "𐍈𒍅ꙮ\u0e3f\uffff\U0010fffd\x00\x01\x7f\x85\xa0\u2028\u3000",
}

TEXTS = LANGUAGES | AWKWARD
