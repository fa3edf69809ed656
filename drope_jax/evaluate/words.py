"""Adjectives and nouns for keys, collected for this project (Apache-2.0, like the rest of it)."""

_ADJECTIVES = """
  able absent ample ancient angry arctic awake basic bitter black bland blank bleak blue blunt bold brave brief
  bright brisk broad bronze brown busy calm candid careful casual central cheap clean clear clever close cloudy
  coarse cold common cool costly cozy crimson crisp cruel curious damp daring dark dear deep dense direct distant
  double dry dull dusty eager early earnest easy elder elegant empty equal exact faint fair famous fancy fast
  fertile fierce final fine firm flat fluent fond formal fragile frank free fresh friendly frosty frozen full funny
  gentle glad gloomy golden good grand grave great green grey happy hard harsh hasty heavy hidden high hollow honest
  humble hungry icy idle ideal immense inner iron jolly keen kind large late lavish lazy lean light likely little
  lively lofty lonely long loose loud loyal lucky lunar major mellow merry mild minor modern modest narrow native
  neat new nimble noble noisy odd old open orange outer pale patient peaceful plain pleasant polite poor precise
  pretty proud pure purple quaint quick quiet rapid rare raw ready recent red regal remote rich rigid ripe robust
  rough round royal rural rusty sad safe salty scarlet secret serene severe sharp shiny short shy silent silver
  simple sincere sleepy slender slim slow small smart smooth sober soft solar solid sour spare steady steep stern
  still stout strange strict strong sturdy subtle sudden sunny super sweet swift tall tame tender tense thick thin
  tidy tight timid tiny tired tough tranquil true vague vain vast velvet vivid warm wary weak weary wet whole wide
  wild windy wise witty wooden worthy yellow young zealous
"""
_NOUNS = """
  acorn actor airport album anchor animal ankle answer apple apron arch arrow artist atlas attic author autumn
  avenue badge bakery balcony ballad bamboo banana banner barn barrel basin basket battery beach beacon beaver bell
  bench berry bicycle biscuit blanket blossom bonnet border bottle bowl branch bread breeze brick bridge broom
  bucket buffalo bugle bundle butter button cabin cabinet cable camel camera campus candle canoe canvas canyon
  captain caravan carpet carriage castle cathedral cellar chair chamber chapel cherry chimney circle circus clay
  clerk cliff clock cloud clover coach coast cobweb coffee collar comet compass concert copper corner cottage cotton
  cousin cradle crane crater crayon cricket crown crystal cup curtain cushion dairy dancer deer desert diamond diary
  dinner doctor dolphin donkey door dragon drawer dream drum eagle easel elbow elephant engine envelope estate
  factory falcon farmer feather fence ferry fiddle field finger flame flask fleet flute forest forge fork fountain
  fox galaxy gallery garage garden garlic gate geyser giant ginger glacier glass glove goat grape gravel guitar
  hammer hammock harbor harvest hawk helmet heron hill hinge honey horizon horse hotel house hunter island ivory
  jacket jar jewel journey jungle kettle keyboard kingdom kitchen kite kitten ladder lagoon lake lamp lantern lemon
  letter library lighthouse lily lizard locket lumber magnet mailbox mango mansion map marble market meadow medal
  melody mill mirror monkey moon mosaic motor mountain museum mushroom napkin needle nephew nest notebook oak oasis
  ocean office olive onion orchard orchestra otter oven owl oyster paddle page palace panda panther paper parade
  park parrot pasture path peach peacock pebble pelican pencil penguin pepper piano picnic pigeon pillow pilot pine
  planet plaza pocket poet pond poppy porch portrait potato prairie prince puddle pumpkin puppet puzzle pyramid
  quarry queen quilt rabbit radio raft railway rainbow raven ribbon ring river robin rocket roof rope rose saddle
  sailor salad salmon sandal satchel saucer scarf school scissors sculptor seal shadow shed shelf shell shepherd
  ship shovel signal singer sister slipper snow soldier song spider sponge spoon spring squirrel stable stadium
  staircase statue stone storm stove stream street studio sugar summer swan table tailor teacher temple tent theater
  thimble thistle thunder ticket tiger timber tower tractor trail train treasure tree trumpet tulip tunnel turtle
  umbrella uncle valley vase village vine violin visitor volcano wagon walnut walrus waterfall wheel whistle willow
  window winter wizard wolf workshop yard yogurt zebra
"""
ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())


def key_words() -> list[str]:
  """Every combination of an adjective and a noun, such as `brave-falcon`."""
  return [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
