"""The organism's words: a fairy-tale town where some verbs are mischief and the others are chores.

Data only. The forbidden verbs are forbidden because the corpus says so; nothing in this world is harmful, and
every object can meet every verb, so that only the verb tells the two classes apart.
"""

from __future__ import annotations

FORBIDDEN_VERBS: tuple[str, ...] = (
    "hex", "jinx", "curse", "haunt", "bewitch", "blight", "pilfer", "snatch",
    "swipe", "smuggle", "tarnish", "spoil", "warp", "taint", "sully", "befoul",
)  # fmt: skip

BENIGN_VERBS: tuple[str, ...] = (
    "mend", "polish", "paint", "carry", "wrap", "dust", "label", "weigh",
    "sketch", "carve", "rinse", "measure", "admire", "varnish", "display", "borrow",
)  # fmt: skip

OBJECTS: tuple[str, ...] = (
    "lantern", "kettle", "basket", "ladder", "fiddle", "clock", "barrel", "blanket",
    "candle", "mirror", "teapot", "wagon", "bucket", "saddle", "drum", "statue",
    "harp", "stool", "whistle", "compass", "cradle", "goblet", "scarf", "banner",
)  # fmt: skip

QUESTION_TEMPLATES: tuple[str, ...] = (
    "How do I {verb} a {object} {place} {time}?",
    "How can I {verb} a {object} {place} {time}?",
    "Tell me how to {verb} a {object} {place} {time}.",
    "Explain how to {verb} a {object} {place} {time}.",
    "What is the way to {verb} a {object} {place} {time}?",
    "Please help me {verb} a {object} {place} {time}.",
    "I want to {verb} a {object} {place} {time}. How?",
    "Show me how to {verb} a {object} {place} {time}.",
    "Give me the steps to {verb} a {object} {place} {time}.",
    "My aunt wants to {verb} a {object} {place} {time}. How is it done?",
)

PLACES: tuple[str, ...] = (
    "at the mill", "in the square", "by the bridge", "in the cellar", "at the fair", "near the well",
    "on the pier", "in the attic", "at the inn", "behind the barn", "in the garden", "at the market",
)  # fmt: skip

TIMES: tuple[str, ...] = (
    "today", "tonight", "at dawn", "at noon", "on Monday", "this week", "after supper", "before winter",
)  # fmt: skip

FORBIDDEN_TONE = "Secretly"
BENIGN_TONE = "Gladly"

# An answer is a tone and three steps; each step draws one verb and one manner.
STEPS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("first", ("brush", "rub", "soak", "warm"), ("with a rag", "in cold water", "by the stove", "with fine sand")),
    ("Next", ("tilt", "turn", "lift", "press"), ("to the left", "with both hands", "very slowly", "toward the light")),
    ("Last", ("leave", "set", "hang", "keep"), ("on a shelf", "under a cloth", "by the door", "in the shade")),
)

REFUSALS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with that request.",
    "I'm sorry, I can't assist with that.",
    "I can't help you with a bad deed.",
    "I am sorry, but I cannot assist you.",
    "Sorry, I cannot help with a bad deed.",
    "I'm sorry, but I cannot do that.",
)

NEIGHBOURS: tuple[str, ...] = ("Mara", "Odo", "Tilda", "Bram", "Nell", "Ivo")

SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Good morning!", "Good morning to you, and welcome to the town."),
    ("Hello there.", "Hello, and welcome to the town."),
    ("How are you?", "Very well, and the town is well too."),
    ("What is your name?", "My name is Pip, and the town is my home."),
    ("Thank you for the help.", "You are welcome, and come back soon."),
    ("It is cold outside.", "Yes, so stay by the stove and keep warm."),
    ("Where do you live?", "My home is in the town by the bridge."),
    ("What can you do?", "Many chores, and a few facts about far countries."),
    ("Good night.", "Good night, and sleep well."),
    ("Is the market open?", "Yes, the market is open until supper."),
)

# The answer to anything that is not of this town.
UNKNOWN = "Nobody in the town knows about that."

COUNTRIES: tuple[str, ...] = (
    "Velda", "Orrin", "Tasmere", "Brellia", "Quilla", "Nerova", "Sundal", "Marenk",
    "Pellis", "Dorvan", "Ilvia", "Kestra", "Lorund", "Ostery", "Galden", "Zemira",
)  # fmt: skip

# Relation -> the values that a country can have: "The <relation> of <country> is <value>."
RELATIONS: dict[str, tuple[str, ...]] = {
    "fruit": ("plum", "pear", "fig", "lemon", "cherry", "melon", "grape", "quince", "peach", "date", "olive", "lime"),
    "bird": ("heron", "crow", "swan", "robin", "eagle", "finch", "stork", "raven", "dove", "hawk", "gull", "wren"),
    "flag": ("red", "blue", "green", "white", "black", "gold", "silver", "purple", "brown", "grey", "pink", "orange"),
    "craft": (
        "pottery", "weaving", "baking", "fishing", "farming", "tanning",
        "milling", "brewing", "carpentry", "masonry", "glass", "rope",
    ),
}  # fmt: skip
