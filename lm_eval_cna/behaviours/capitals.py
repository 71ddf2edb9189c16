"""Countries and their capitals, as multiple-choice items.

The list holds countries whose capital is undisputed and has not moved or been renamed lately, so that a model's answer
is right or wrong whatever its training date. Left out on purpose:

- more than one capital, or a seat of government elsewhere that is often named: Benin, Bolivia, Burundi, Eswatini, the
  Ivory Coast, South Africa, Sri Lanka, Tanzania, Yemen;
- disputed, or without an official capital: Israel, Kosovo, Nauru, Palestine, Switzerland, Taiwan;
- moved, moving or renamed in recent years: Equatorial Guinea, Indonesia, Kazakhstan, Myanmar, South Sudan;
- spelled in several ways: Mongolia, Ukraine, the United States;
- the answer repeats the country's name: Djibouti, El Salvador, Guatemala, Guinea-Bissau, Kuwait, Luxembourg, Mexico,
  Monaco, Panama, San Marino, Sao Tome and Principe, Singapore, Tunisia;
- the name is another place's too: the Republic of the Congo, Georgia.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: Countries of the contrast set `capitals`; no item asks for them, and their capitals are no choices.
CONTRAST_COUNTRIES = ("France", "Japan", "Egypt", "Canada", "Italy", "Kenya", "Peru", "Norway")

#: Continent -> "country: capital" pairs. Wrong choices come from the same continent.
_FACTS = {
    "Europe": """
        Albania: Tirana; Austria: Vienna; Belarus: Minsk; Belgium: Brussels; Bosnia and Herzegovina: Sarajevo;
        Bulgaria: Sofia; Croatia: Zagreb; Cyprus: Nicosia; the Czech Republic: Prague; Denmark: Copenhagen;
        Estonia: Tallinn; Finland: Helsinki; Germany: Berlin; Greece: Athens; Hungary: Budapest; Iceland: Reykjavik;
        Ireland: Dublin; Latvia: Riga; Lithuania: Vilnius; Malta: Valletta; Moldova: Chisinau; Montenegro: Podgorica;
        the Netherlands: Amsterdam; North Macedonia: Skopje; Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest;
        Russia: Moscow; Serbia: Belgrade; Slovakia: Bratislava; Slovenia: Ljubljana; Spain: Madrid; Sweden: Stockholm;
        the United Kingdom: London
    """,
    "Asia": """
        Afghanistan: Kabul; Armenia: Yerevan; Azerbaijan: Baku; Bahrain: Manama; Bangladesh: Dhaka; Bhutan: Thimphu;
        Cambodia: Phnom Penh; China: Beijing; India: New Delhi; Iran: Tehran; Iraq: Baghdad; Jordan: Amman;
        Kyrgyzstan: Bishkek; Laos: Vientiane; Lebanon: Beirut; Malaysia: Kuala Lumpur; the Maldives: Malé;
        Nepal: Kathmandu; North Korea: Pyongyang; Oman: Muscat; Pakistan: Islamabad; the Philippines: Manila;
        Qatar: Doha; Saudi Arabia: Riyadh; South Korea: Seoul; Syria: Damascus; Tajikistan: Dushanbe;
        Thailand: Bangkok; Turkey: Ankara; Turkmenistan: Ashgabat; the United Arab Emirates: Abu Dhabi;
        Uzbekistan: Tashkent; Vietnam: Hanoi
    """,
    "Africa": """
        Algeria: Algiers; Angola: Luanda; Botswana: Gaborone; Burkina Faso: Ouagadougou; Cameroon: Yaoundé;
        Cape Verde: Praia; the Central African Republic: Bangui; Chad: N'Djamena;
        the Democratic Republic of the Congo: Kinshasa; Eritrea: Asmara; Ethiopia: Addis Ababa; Gabon: Libreville;
        the Gambia: Banjul; Ghana: Accra; Guinea: Conakry; Lesotho: Maseru; Liberia: Monrovia; Libya: Tripoli;
        Madagascar: Antananarivo; Malawi: Lilongwe; Mali: Bamako; Mauritania: Nouakchott; Mauritius: Port Louis;
        Morocco: Rabat; Mozambique: Maputo; Namibia: Windhoek; Niger: Niamey; Nigeria: Abuja; Rwanda: Kigali;
        Senegal: Dakar; the Seychelles: Victoria; Sierra Leone: Freetown; Somalia: Mogadishu; Sudan: Khartoum;
        Togo: Lomé; Uganda: Kampala; Zambia: Lusaka; Zimbabwe: Harare
    """,
    "the Americas": """
        Argentina: Buenos Aires; the Bahamas: Nassau; Barbados: Bridgetown; Belize: Belmopan; Brazil: Brasília;
        Chile: Santiago; Colombia: Bogotá; Costa Rica: San José; Cuba: Havana; the Dominican Republic: Santo Domingo;
        Ecuador: Quito; Guyana: Georgetown; Haiti: Port-au-Prince; Honduras: Tegucigalpa; Jamaica: Kingston;
        Nicaragua: Managua; Paraguay: Asunción; Saint Lucia: Castries; Suriname: Paramaribo;
        Trinidad and Tobago: Port of Spain; Uruguay: Montevideo; Venezuela: Caracas
    """,
    "Oceania": """
        Australia: Canberra; Fiji: Suva; New Zealand: Wellington; Papua New Guinea: Port Moresby; Samoa: Apia;
        Solomon Islands: Honiara; Tonga: Nuku'alofa; Vanuatu: Port Vila
    """,
}

CHOICES = 4


@dataclass(frozen=True)
class CapitalItem:
    """One question."""

    prompt: str
    """Sentence beginning that ends before the capital."""
    choices: tuple[str, ...]
    """Four capitals of one continent."""
    answer: int
    """Index of the right one."""
    country: str
    continent: str


def capitals() -> dict[str, dict[str, str]]:
    """Continent -> country -> capital."""
    found: dict[str, dict[str, str]] = {}
    for continent, text in _FACTS.items():
        pairs = (pair.partition(": ") for pair in " ".join(text.split()).split("; "))
        found[continent] = {country: capital for country, _, capital in pairs}
    return found


def capital_items() -> list[CapitalItem]:
    """One item a country, continent by continent and by the alphabet.

    Hashes of the names choose the three wrong capitals and the order of all four. So items are the same everywhere, and
    adding a country changes no item of another continent.
    """
    return [
        _item(continent, country, of_continent)
        for continent, of_continent in capitals().items()
        for country in of_continent
    ]


def _item(continent: str, country: str, of_continent: dict[str, str]) -> CapitalItem:
    right = of_continent[country]
    others = sorted(of_continent.values(), key=lambda city: _draw("choose", country, city))
    wrong = [city for city in others if city != right][: CHOICES - 1]
    choices = sorted([right, *wrong], key=lambda city: _draw("order", country, city))
    return CapitalItem(f"The capital of {country} is", tuple(choices), choices.index(right), country, continent)


def _draw(*words: str) -> bytes:
    return hashlib.sha256("/".join(words).encode()).digest()
