/* Looks at a picture of the small model and says whether what its prompt asked for is there. Plain image
 * analysis: pixels are sorted by hue, the largest connected patch of the colour asked for is the object, and
 * its shape is the one of eight outlines that covers it best. The lists below are in the order of
 * models/tiny/train/scene.py. */
#ifndef KILN_TESTS_MODEL_MEASURE_H
#define KILN_TESTS_MODEL_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#define MEASURE_SIZE 128

enum measure_colour {
    COLOUR_RED,
    COLOUR_ORANGE,
    COLOUR_YELLOW,
    COLOUR_GREEN,
    COLOUR_CYAN,
    COLOUR_BLUE,
    COLOUR_PURPLE,
    COLOUR_PINK,
    COLOUR_WHITE,
    COLOUR_BLACK,
    COLOUR_COUNT
};

enum measure_shape {
    SHAPE_CIRCLE,
    SHAPE_SQUARE,
    SHAPE_TRIANGLE,
    SHAPE_STAR,
    SHAPE_HEART,
    SHAPE_DIAMOND,
    SHAPE_CROSS,
    SHAPE_RING,
    SHAPE_COUNT
};

enum measure_background {
    BACKGROUND_ANY,
    BACKGROUND_GREY,
    BACKGROUND_WHITE,
    BACKGROUND_DARK,
    BACKGROUND_CREAM,
    BACKGROUND_STRIPES,
    BACKGROUND_CHECKERED,
    BACKGROUND_NIGHT,
    BACKGROUND_SKY,
    BACKGROUND_SUNSET,
    BACKGROUND_GRASS,
    BACKGROUND_COUNT
};

/* One object as a prompt asks for it. */
struct measure_object {
    int32_t colour, shape;
    float x, y, radius; /* where its centre should be, and its size: pixels */
};

struct measure_result {
    int32_t colour, shape, place; /* 1: as asked for */
    int32_t seen;                 /* the shape that fits best, −1 when there is no such colour */
    float fit;                    /* that outline's share: intersection over union */
    float x, y;
    int32_t area;
};

/* rgb: MEASURE_SIZE² pixels of three bytes. */
void measure_object(const uint8_t *rgb, int background, const struct measure_object *o,
                    struct measure_result *out);
/* True if the edge of the picture looks like that background, and for BACKGROUND_ANY. */
bool measure_background(const uint8_t *rgb, int background);

#endif
