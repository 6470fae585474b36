"""The words of captions: verbs of the motions, places of the scenes, names of subjects."""

# Every verb as "plain third participle", and after the bar what follows it.
MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "right": (
        "move moves moving|to the right", "walk walks walking|to the right", "go goes going|right",
        "run runs running|to the right", "slide slides sliding|from left to right",
        "travel travels traveling|to the right",
    ),
    "left": (
        "move moves moving|to the left", "walk walks walking|to the left", "go goes going|left",
        "run runs running|to the left", "slide slides sliding|from right to left",
        "travel travels traveling|to the left",
    ),
    "up": (
        "rise rises rising", "move moves moving|up", "fly flies flying|up", "float floats floating|upward",
        "go goes going|up", "climb climbs climbing|up",
    ),
    "down": (
        "fall falls falling", "move moves moving|down", "sink sinks sinking", "float floats floating|downward",
        "go goes going|down", "fall falls falling|down",
    ),
    "hop": (
        "hop hops hopping", "jump jumps jumping", "bounce bounces bouncing", "jump jumps jumping|up and down",
        "hop hops hopping|up and down",
    ),
    "spin": (
        "spin spins spinning", "spin spins spinning|around", "turn turns turning|around", "rotate rotates rotating",
        "roll rolls rolling|over",
    ),
    "grow": (
        "grow grows growing", "grow grows growing|bigger", "get gets getting|bigger", "become becomes becoming|larger",
        "come comes coming|closer",
    ),
    "shrink": (
        "shrink shrinks shrinking", "get gets getting|smaller", "become becomes becoming|smaller",
        "move moves moving|away",
    ),
    "still": (
        "stand stands standing|still", "stay stays staying|still", "wait waits waiting", "rest rests resting",
        "stay stays staying|in place",
    ),
    "circle": (
        "move moves moving|in a circle", "fly flies flying|in circles", "circle circles circling|around",
        "go goes going|in circles",
    ),
}  # fmt: skip
SCENE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "on the beach", "on a sandy beach", "by the ocean", "at the seaside"),
    "meadow": ("in a meadow", "on a green meadow", "in a grassy field", "on the grass", "in a field of flowers"),
    "snow": ("in the snow", "on a snowy field", "in a winter landscape", "on the ice and snow"),
    "night": ("at night", "under the moon", "on a dark night", "under the stars at night"),
    "city": ("in a city", "in the city", "on a city street", "in front of tall buildings", "in a town"),
    "desert": ("in a desert", "in the desert", "among sand dunes", "next to a cactus in the desert"),
    "forest": ("in a forest", "in the forest", "in the woods", "between the trees of a forest"),
    "sea": ("under water", "under the sea", "underwater", "in the deep blue sea"),
    "room": ("in a room", "inside a house", "in a living room", "at home"),
    "space": ("in space", "in outer space", "among planets and stars", "in the universe"),
    "clouds": ("in the sky", "among the clouds", "in a blue sky", "in a cloudy sky"),
    "road": ("on a road", "on the road", "on a country road", "on a highway"),
    "stage": ("on a stage", "on the stage", "in a theater", "in front of a curtain"),
    "mountains": ("in the mountains", "in front of mountains", "in a mountain valley", "near tall mountains"),
    "garden": ("in a garden", "in the garden", "in front of a fence", "in a yard"),
    "plain": ("on a plain background", "in front of a plain wall", "on an empty background"),
    "photo": ("in front of a photo", "in front of a picture", "on a photo background", "in a strange place"),
}
# For a scene that a reference shows; "last" because it is the last reference.
GIVEN_SCENE = (
    "in this place",
    "in the given scene",
    "in the place of the last picture",
    "in the scene of the last image",
    "on the given background",
    "in front of this background",
)
GENERIC = ("subject", "character", "thing", "object", "figure", "toy")
# What a thing of a family of silhouettes may be called.
FAMILY_NOUNS = {
    "creature": ("creature", "animal", "monster", "pet", "cartoon"),
    "blob": ("blob", "shape", "creature", "slime"),
    "polygon": ("shape", "symbol"),
    "strokes": ("sign", "symbol", "logo"),
    "object": ("object", "thing"),
    "cutout": ("picture", "photo", "image", "sticker"),
}
# What a silhouette's own noun may be replaced by, itself included.
NOUN_SYNONYMS = {
    "cat": ("cat", "kitten"),
    "dog": ("dog", "puppy"),
    "rabbit": ("rabbit", "bunny"),
    "bear": ("bear", "teddy"),
    "bug": ("bug", "insect", "alien"),
    "dragon": ("dragon", "dinosaur"),
    "monster": ("monster", "goat", "cow", "bull"),
    "icecream": ("icecream", "dessert"),
    "plane": ("plane", "airplane"),
    "boat": ("boat", "ship"),
    "person": ("person", "man", "woman", "boy", "girl", "child", "doll"),
    "car": ("car", "taxi"),
    "truck": ("truck", "bus", "van"),
    "cup": ("cup", "mug"),
    "ball": ("ball", "planet"),
    "gift": ("gift", "box", "present"),
    "shirt": ("shirt", "sweater"),
    "house": ("house", "building"),
    "tree": ("tree", "plant"),
    "fish": ("fish",),
    "bird": ("bird", "parrot", "duck", "chicken"),
}
# Names that say nothing about what is drawn here; whoever brings pictures of their own will use words like these.
ANY_NOUNS = (
    "backpack", "banana", "bag", "bed", "bicycle", "book", "boot", "bowl", "bread", "cake", "camera", "candle",
    "castle", "chair", "clock", "cookie", "crab", "deer", "donut", "dress", "drum", "eagle", "elephant", "face",
    "fox", "frog", "ghost", "giraffe", "glasses", "hamster", "hero", "horse", "jacket", "kite", "knight", "koala",
    "lady", "lemon", "lion", "lizard", "lollipop", "monkey", "motorcycle", "mouse", "octopus", "orange", "owl",
    "panda", "pear", "pen", "penguin", "phone", "piano", "pig", "pizza", "pot", "prince", "princess", "pumpkin",
    "queen", "king", "sandwich", "shark", "sheep", "shoe", "skateboard", "skull", "snail", "snake", "sofa",
    "spider", "squirrel", "statue", "strawberry", "sun", "sunflower", "table", "tiger", "tomato", "tractor",
    "train", "turtle", "unicorn", "vase", "violin", "watch", "watermelon", "whale", "witch", "wizard", "wolf",
    "zebra", "astronaut", "baby", "cap", "helmet", "spaceship", "submarine", "helicopter", "scooter", "bee", "guy",
    "guitarist", "dancer", "teapot",
)  # fmt: skip
SIZES = ("small", "little", "big", "cute", "funny", "nice")
