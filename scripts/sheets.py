#!/usr/bin/env python3
"""Makes data/quickstart/{digits.png,digits.txt,icons.png,icons.txt}: pictures of `mixlora quickstart --vision`.

    pip download --no-deps scikit-learn==1.9.1
    npm pack emoji-datasource-twitter@16.0.0
    pip install pillow==13.0.0
    scripts/sheets.py scikit_learn-1.9.1-*.whl emoji-datasource-twitter-16.0.0.tgz

The sources are checked, so the same bytes come out each time. data/quickstart/SOURCES.md names authors and licences.
"""

import csv
import gzip
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "data" / "quickstart"
DIGITS = "sklearn/datasets/data/digits.csv.gz"
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
ICONS_SHA256 = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"

# Icons by what a person calls them, with the names that the package gives. Left out: what is of two kinds (tomato,
# unicorn), parts of things (feather, wing), and near copies of others (half hours of clocks).
KINDS = {
    "animal": "monkey gorilla orangutan dog2 poodle wolf fox_face raccoon cat2 black_cat lion_face tiger2 leopard racehorse "
    "zebra_face deer bison ox water_buffalo cow2 pig2 boar ram sheep goat dromedary_camel camel llama giraffe_face elephant "
    "rhinoceros hippopotamus mouse2 rat rabbit2 chipmunk beaver hedgehog",
    "arrow": "arrow_up arrow_upper_right arrow_right arrow_lower_right arrow_down arrow_lower_left arrow_left "
    "arrow_upper_left arrow_up_down left_right_arrow leftwards_arrow_with_hook arrow_right_hook arrow_heading_up "
    "arrow_heading_down arrows_clockwise arrows_counterclockwise",
    "building": "stadium classical_building hut house_buildings derelict_house_building house house_with_garden office "
    "post_office european_post_office hospital bank hotel love_hotel convenience_store school department_store factory "
    "japanese_castle european_castle wedding tokyo_tower church mosque hindu_temple synagogue",
    "clock": "watch alarm_clock stopwatch timer_clock mantelpiece_clock clock12 clock1 clock2 clock3 clock4 clock5 clock6 "
    "clock7 clock8 clock9 clock10 clock11",
    "clothing": "lab_coat safety_vest necktie shirt jeans scarf gloves coat socks dress kimono sari one-piece_swimsuit "
    "briefs shorts bikini womans_clothes thong_sandal mans_shoe athletic_shoe hiking_boot womans_flat_shoe high_heel sandal "
    "ballet_shoes boot womans_hat tophat billed_cap running_shirt_with_sash martial_arts_uniform",
    "drink": "glass_of_milk coffee tea sake champagne wine_glass cocktail tropical_drink beer beers clinking_glasses "
    "tumbler_glass cup_with_straw bubble_tea beverage_box mate_drink",
    "face": "grinning smile laughing sweat_smile joy slightly_smiling_face upside_down_face wink blush innocent heart_eyes "
    "star-struck kissing_heart yum stuck_out_tongue zany_face thinking_face zipper_mouth_face neutral_face no_mouth smirk "
    "unamused grimacing pensive sleeping mask nauseated_face partying_face sunglasses nerd_face worried open_mouth flushed "
    "cry sob scream triumph rage",
    "fruit": "grapes melon watermelon tangerine lemon lime banana pineapple mango apple green_apple pear peach cherries "
    "strawberry blueberries kiwifruit",
    "hand": "wave raised_back_of_hand raised_hand_with_fingers_splayed hand spock-hand rightwards_hand leftwards_hand "
    "palm_down_hand palm_up_hand leftwards_pushing_hand rightwards_pushing_hand ok_hand pinched_fingers pinching_hand v "
    "crossed_fingers hand_with_index_finger_and_thumb_crossed i_love_you_hand_sign the_horns call_me_hand point_left "
    "point_right point_up_2 point_down point_up index_pointing_at_the_viewer +1 -1 fist facepunch left-facing_fist "
    "right-facing_fist clap open_hands palms_up_together handshake pray",
    "heart": "cupid gift_heart sparkling_heart heartpulse heartbeat revolving_hearts two_hearts "
    "heavy_heart_exclamation_mark_ornament broken_heart heart_on_fire mending_heart heart pink_heart orange_heart yellow_heart "
    "green_heart blue_heart light_blue_heart purple_heart brown_heart black_heart grey_heart white_heart hearts",
    "person": "child adult man_with_beard woman red_haired_woman curly_haired_man bald_man older_woman older_man "
    "male-doctor female-doctor male-student female-teacher male-judge female-farmer male-cook female-mechanic "
    "male-factory-worker female-office-worker male-scientist female-technologist male-singer female-artist male-pilot "
    "female-astronaut male-firefighter female-police-officer male-detective guardsman female-construction-worker prince "
    "princess man-wearing-turban person_with_headscarf man_in_tuxedo bride_with_veil walking standing_person",
    "plant": "bouquet cherry_blossom white_flower lotus rose wilted_flower hibiscus sunflower blossom tulip hyacinth seedling "
    "potted_plant evergreen_tree deciduous_tree palm_tree cactus ear_of_rice herb shamrock four_leaf_clover maple_leaf "
    "fallen_leaf leaves leafless_tree bamboo",
    "tool": "hammer axe pick hammer_and_pick hammer_and_wrench carpentry_saw wrench screwdriver nut_and_bolt gear "
    "compression hook toolbox ladder shovel scissors",
    "vegetable": "eggplant potato carrot corn hot_pepper bell_pepper cucumber leafy_green broccoli garlic onion beans "
    "ginger_root pea_pod root_vegetable sweet_potato",
    "vehicle": "steam_locomotive railway_car bullettrain_side bullettrain_front metro light_rail tram monorail bus "
    "oncoming_bus trolleybus minibus ambulance fire_engine police_car oncoming_police_car taxi oncoming_taxi car "
    "oncoming_automobile blue_car pickup_truck truck articulated_lorry tractor racing_car racing_motorcycle motor_scooter "
    "auto_rickshaw bike boat canoe speedboat passenger_ship ferry motor_boat ship airplane small_airplane helicopter",
}


def checked(what, data, want):
    found = hashlib.sha256(data).hexdigest()
    if found != want:
        sys.exit(f"{what} has the SHA-256 {found}, not {want}")
    return data


def sheet(mode, side, columns, cells):
    """The cells on one picture, row by row."""
    rows = -(-len(cells) // columns)
    picture = Image.new(mode, (side * columns, side * rows), "white")
    for at, cell in enumerate(cells):
        picture.paste(cell, (at % columns * side, at // columns * side))
    return picture


def digits(wheel):
    """Dark ink on white, 8 x 8: the source counts ink from 0 to 16."""
    packed = zipfile.ZipFile(wheel).read(DIGITS)
    text = gzip.decompress(checked(DIGITS, packed, DIGITS_SHA256)).decode()
    rows = [[int(float(value)) for value in row] for row in csv.reader(text.splitlines())]
    cells = [Image.frombytes("L", (8, 8), bytes(255 - ink * 255 // 16 for ink in row[:64])) for row in rows]
    sheet("L", 8, 40, cells).save(OUT / "digits.png", optimize=True)
    labels = "".join(str(row[64]) for row in rows)
    lines = [labels[at : at + 40] for at in range(0, len(labels), 40)]
    (OUT / "digits.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(rows)} digits")


def icons(tarball):
    """On white, 64 x 64, in 256 colours that all share."""
    data = checked(tarball, Path(tarball).read_bytes(), ICONS_SHA256)
    package = tarfile.open(fileobj=io.BytesIO(data))

    def read(path):
        return package.extractfile(f"package/{path}").read()

    files = {emoji["short_name"]: emoji["image"] for emoji in json.loads(read("emoji.json"))}
    names = [(kind, name) for kind in sorted(KINDS) for name in KINDS[kind].split()]
    assert len({name for _, name in names}) == len(names), "a name occurs twice"
    cells = []
    for _, name in names:
        icon = Image.open(io.BytesIO(read(f"img/twitter/64/{files[name]}"))).convert("RGBA")
        assert icon.size == (64, 64), name
        white = Image.new("RGBA", icon.size, "white")
        cells.append(Image.alpha_composite(white, icon).convert("RGB"))
    assert len({cell.tobytes() for cell in cells}) == len(cells), "a picture occurs twice"
    colors = sheet("RGB", 64, 20, cells).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    colors.save(OUT / "icons.png", optimize=True)
    (OUT / "icons.txt").write_text("".join(f"{kind} {name}\n" for kind, name in names))
    print(f"{len(names)} icons of {len(KINDS)} kinds")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    digits(sys.argv[1])
    icons(sys.argv[2])
