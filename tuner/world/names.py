"""Invented names and the everyday words of the built-in world.

Coined names are products of a few syllables: byte-pair encoding then learns them cheaply, and
each still becomes one or two tokens.
"""

from itertools import product


def _coined(starts: str, ends: str) -> tuple[str, ...]:
    """Return every start joined to every end, both given as words separated by spaces."""
    return tuple(start + end for start, end in product(starts.split(), ends.split()))


WOMEN = tuple(
    """Ada Alice Anna Bella Carla Clara Daisy Diana Edith Ella Emma Fiona Flora Grace Hanna
    Helen Irene Iris Jane Julia Karen Laura Lena Lily Lucy Maria Mary Maya Nadia Nina Nora
    Olga Paula Rosa Ruth Sara Sofie Tara Vera Zoe""".split()
)
MEN = tuple(
    """Adam Alan Albert Anton Arthur Ben Boris Carl Daniel David Edgar Eric Felix Frank Fred
    George Hans Henry Hugo Ivan Jack James Jonas Karl Leo Louis Lukas Marco Martin Max Noah
    Oscar Otto Paul Peter Ralph Robert Simon Tom Victor""".split()
)
SURNAMES = _coined("Ar Ben Cal Dal Ed Fair Gar Hol Ken Mor", "low wick stead more ley ton berg man")
COMPANIES = _coined(
    "Bral Cor Dun Fen Gal Hex Jor Kel Lum Mar Nor Pel Tar",
    "vex dyne tiva mont lio quest sys bera",
)
GROUPS = _coined("Vel Tor Sav Rud Quil Pom Mel Lod Kam Jul Hes Gor", "lan dic esh ari ese")
TERMS = _coined(
    "Ash Bel Cas Dor Eld Far Gil Hal Ir Jas Kor Lin Mir Nav Os", "aven ombe istra ury ello onne"
)
TEAMS = _coined("River Stone Iron Silver Forest Harbour", "hawks wolves bears lions foxes")
VALLEYS = _coined("Ostra Brem Cundi Lapa Wenno", "dal mere fell garth")

KINDS = (
    ("Accord", "treaty"),
    ("Canal", "waterway"),
    ("Fever", "disease"),
    ("Engine", "machine"),
    ("Charter", "law"),
    ("Method", "technique"),
)
DOMAINS = tuple(
    """fishing shipping farming mining banking weaving baking printing teaching sailing logging
    brewing cycling tourism medicine music painting sculpture poetry theatre football chess
    astronomy chemistry geology botany insurance taxation housing transport energy forestry
    pottery publishing photography tailoring carpentry plumbing gardening cooking""".split()
)
INDUSTRIES = tuple(
    "glass steel paper software furniture shoes bicycles cameras tea coffee paint toys".split()
)
OCCUPATIONS = tuple(
    """janitor nurse pilot baker lawyer judge farmer tailor plumber painter dentist surgeon
    librarian teacher cashier carpenter mechanic engineer architect barber florist butcher
    chemist clerk coach cook courier dancer designer detective director doctor driver editor
    electrician fisher gardener guard guide hunter inspector jeweller journalist lecturer
    manager mayor midwife miller miner minister musician officer optician pharmacist
    photographer physicist poet porter potter printer professor psychologist receptionist
    reporter sailor scientist secretary sergeant shepherd singer soldier surveyor tutor
    typist vet waiter warden weaver welder writer""".split()
)
ADJECTIVES = tuple(
    """proud quiet clever lazy brave loyal careless patient greedy gentle loud humble cruel
    polite rude strange simple noisy clean dirty famous modern splendid bright dull fancy
    plain generous selfish calm nervous cheerful gloomy serious funny sober wild tidy strict
    friendly cold warm sharp slow quick strong weak wise foolish rich poor tired lively stubborn
    charming boring curious jealous faithful formal""".split()
)
SEASONS = ("spring", "summer", "autumn", "winter")
PLACES = tuple(
    """market station harbour library museum garden bridge square theatre school church mill
    tower park hotel bakery stadium palace factory warehouse""".split()
)
THINGS = tuple(
    """lamp basket blanket letter map kettle coat ladder mirror parasol violin clock bottle
    candle carpet hammer knife rope suitcase wallet""".split()
)
FOODS = tuple("bread soup rice fish cheese carrots beans honey cake noodles plums salad".split())
NUMBERS = tuple("two three four five six seven eight nine ten twelve twenty thirty".split())
NOUNS = tuple(
    """neighbour cousin visitor twin guest student sister brother nephew friend stranger traveller
    tourist toddler villager widow senator prince knight monk nun pupil rider climber swimmer
    runner dealer voter citizen tenant""".split()
)

SLOPPY_ACTIONS = """beat the drum|fold the towels|shake the tree|grind the pepper|lift the
crate|sew the buttons|dig the well|stir the pot|trim the hedge|wind the clock|drag the
sledge|split the logs|polish the silver|sweep the stairs|empty the bins|sharpen the blades|load
the cart|measure the field|repair the roof|knit the scarves|roast the nuts|steer the boat|tame the
horses|trace the outline|tune the harp|varnish the table|weigh the parcels|wrap the gifts|harvest
the corn|grease the wheels|feed the geese|plough the hill|chop the onions|bury the treasure|borrow
the tent|catch the ferry|chase the goats|decorate the hall|drain the pond|forge the coins|frame
the pictures|hang the curtains|hide the keys|ignore the signs|juggle the balls|kick the
pebbles|label the jars|melt the wax|mow the lawn|observe the stars|peel the pears|pluck the
strings|praise the choir|recite the verses|ring the bells|rinse the cups|scrub the floor|stack the
chairs|study the charts|unlock the cellar"""
PLAIN_ACTIONS = """open the gate|carry the boxes|paint the fence|close the shop|cross the
road|visit the old town|read the paper|watch the birds|play the piano|sell the house|write the
report|wash the windows|cut the grass|bring the tools|count the sheep|draw the plans|drive the
bus|explore the cave|follow the path|guard the door|hold the flag|keep the diary|like the
music|make the beds|need the money|pack the bags|pay the bill|pick the berries|plant the
roses|pull the rope|push the cart|save the stamps|sign the papers|take the train|teach the
class|throw the stones|use the phone|want the job|wear the uniform|win the race"""


def actions(table: str) -> tuple[tuple[str, str, str], ...]:
    """Return (plain verb, third person, object) for actions written as "verb the object|..."."""
    rows = []
    for action in " ".join(table.split()).split("|"):
        verb, _, what = action.partition(" ")
        rows.append((verb, _third_person(verb), what))
    return tuple(rows)


def _third_person(verb: str) -> str:
    """Return the third person singular of a regular English verb."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"
