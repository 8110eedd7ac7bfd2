/* The shipped model draws what its prompts ask for.
 *
 * held_out.tsv holds prompts whose combination of colour, shape, size and place training never saw
 * (models/tiny/train/held_out.py says by which rule); each is rendered with the model's own defaults and
 * measured (measure.h). truth.png holds the first of them as the generator of the training pictures draws
 * them: with it the judge itself is judged. */
#include <math.h>
#include <png.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/fs.h"
#include "kernels/kiln.h"
#include "tests/model/measure.h"
#include "tests/unit/check.h"

/* Objects in the colour and in the shape asked for, in percent: what a model must reach. */
#define COLOUR_WANTED 95.0
#define SHAPE_WANTED 90.0

#define PROMPTS_MIN 300
#define PROMPTS_MAX 512
#define TRUTH 64
#define TRUTH_COLUMNS 8
#define BATCH 8

struct prompt {
    uint64_t seed;
    int background, objects;
    struct measure_object object[2];
    char *text;
};

static struct {
    struct kn_buf file;
    struct prompt v[PROMPTS_MAX];
    int count;
} held;

struct tally {
    int objects, colour, shape, place, pictures, background;
};

static int word_index(const char *word, const char *const *words, int n) {
    for (int i = 0; i < n; i++)
        if (!strcmp(word, words[i])) return i;
    CHECK_MSG(false, "held_out.tsv: \"%s\" is not known", word);
    return -1;
}

static struct measure_object read_object(char *text) {
    static const char *const colours[] = {"red",  "orange", "yellow", "green", "cyan",
                                          "blue", "purple", "pink",   "white", "black"};
    static const char *const shapes[] = {"circle", "square",  "triangle", "star",
                                         "heart",  "diamond", "cross",    "ring"};
    struct measure_object o;
    char colour[16], shape[16];
    CHECK_INT(sscanf(text, "%15s %15s %f %f %f", colour, shape, &o.x, &o.y, &o.radius), 5);
    o.colour = word_index(colour, colours, COLOUR_COUNT);
    o.shape = word_index(shape, shapes, SHAPE_COUNT);
    return o;
}

static void read_prompts(void) {
    static const char *const backgrounds[] = {"-",
                                              "on a grey background",
                                              "on a white background",
                                              "on a dark background",
                                              "on cream paper",
                                              "on stripes",
                                              "on a checkered floor",
                                              "in the night sky",
                                              "under a blue sky",
                                              "at sunset",
                                              "on green grass"};
    if (held.count) return;
    struct kn_err err = {0};
    kn_buf_init(&held.file, 1 << 20);
    CHECK_MSG(!kn_fs_read(KILN_MODEL_TEST_DIR "/held_out.tsv", &held.file, &err), "%s", err.text);
    CHECK_INT(kn_buf_append(&held.file, "", 1), 0);
    char *save, *lines = (char *)held.file.data;
    for (char *line = strtok_r(lines, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (*line == '#') continue;
        CHECK(held.count < PROMPTS_MAX);
        struct prompt *p = &held.v[held.count];
        char *field[5], *at = line;
        for (int i = 0; i < 5; i++) CHECK((field[i] = strsep(&at, "\t")) != NULL);
        CHECK(at == NULL);
        p->seed = strtoull(field[0], NULL, 10);
        p->background = word_index(field[1], backgrounds, BACKGROUND_COUNT);
        p->object[p->objects++] = read_object(field[2]);
        if (strcmp(field[3], "-")) p->object[p->objects++] = read_object(field[3]);
        p->text = field[4];
        held.count++;
    }
    CHECK_MSG(held.count >= PROMPTS_MIN, "%d prompts", held.count);
}

/* Returns whether every object is there in its colour and shape. */
static bool judge(const struct prompt *p, const uint8_t *rgb, struct tally *t) {
    bool all = true;
    for (int i = 0; i < p->objects; i++) {
        struct measure_result r;
        measure_object(rgb, p->background, &p->object[i], &r);
        t->objects++;
        t->colour += r.colour;
        t->shape += r.shape;
        t->place += r.place;
        all &= r.colour && r.shape;
    }
    t->pictures++;
    t->background += measure_background(rgb, p->background);
    return all;
}

static double percent(int part, int whole) {
    return 100.0 * part / whole;
}

static void print(const char *what, const struct tally *t) {
    printf("%s: %d pictures, %d objects: colour %.1f %%, shape %.1f %%, place %.1f %%; background %.1f %%\n",
           what, t->pictures, t->objects, percent(t->colour, t->objects), percent(t->shape, t->objects),
           percent(t->place, t->objects), percent(t->background, t->pictures));
}

/* ---- the judge ---- */

static uint8_t *read_truth(void) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    CHECK(png_image_begin_read_from_file(&image, KILN_MODEL_TEST_DIR "/truth.png"));
    image.format = PNG_FORMAT_RGB;
    CHECK_INT(image.width, TRUTH_COLUMNS * MEASURE_SIZE);
    CHECK_INT(image.height, TRUTH / TRUTH_COLUMNS * MEASURE_SIZE);
    uint8_t *rgb = malloc(PNG_IMAGE_SIZE(image));
    CHECK(rgb);
    CHECK(png_image_finish_read(&image, NULL, rgb, 0, NULL));
    return rgb;
}

static void cut(const uint8_t *sheet, int i, uint8_t *out) {
    const size_t row = (size_t)TRUTH_COLUMNS * MEASURE_SIZE * 3, own = (size_t)MEASURE_SIZE * 3;
    for (size_t y = 0; y < MEASURE_SIZE; y++)
        memcpy(out + y * own,
               sheet + ((size_t)(i / TRUTH_COLUMNS) * MEASURE_SIZE + y) * row +
                   (size_t)(i % TRUTH_COLUMNS) * own,
               own);
}

TEST(judge_agrees_with_the_generator) {
    read_prompts();
    uint8_t *sheet = read_truth();
    static uint8_t rgb[MEASURE_SIZE * MEASURE_SIZE * 3];
    struct tally right = {0}, wrong = {0};
    for (int i = 0; i < TRUTH; i++) {
        cut(sheet, i, rgb);
        judge(&held.v[i], rgb, &right);
        judge(&held.v[(i + 1) % TRUTH], rgb, &wrong);
    }
    free(sheet);
    print("drawn by the generator", &right);
    print("the same, with the next prompt", &wrong);
    CHECK(percent(right.colour, right.objects) > 99);
    CHECK(percent(right.shape, right.objects) > 99);
    CHECK(percent(right.place, right.objects) > 99);
    CHECK(percent(right.background, right.pictures) > 97);
    CHECK(percent(wrong.colour, wrong.objects) < 30);
    CHECK(percent(wrong.shape, wrong.objects) < 15);
}

/* ---- the model ---- */

struct run {
    const struct prompt *prompts; /* of the batch */
    struct tally tally, shuffled;
    int next; /* index of the batch's first among all */
};

static int on_image(void *ctx, const struct kiln_image *image) {
    struct run *r = ctx;
    if (image->status) {
        fprintf(stderr, "\"%s\": not finite at step %d\n", image->task->prompt, image->step);
        return 1;
    }
    int i = r->next + image->index;
    if (!judge(&held.v[i], image->rgb, &r->tally)) printf("missed: %s\n", held.v[i].text);
    judge(&held.v[(i + 1) % held.count], image->rgb, &r->shuffled);
    return 0;
}

struct loaded {
    struct kiln_engine *engine;
    struct kiln_model *model;
    struct kn_model_info info;
};

static struct loaded load(void) {
    struct loaded l = {0};
    struct kn_err err = {0};
    const struct kiln_engine_options options = {.device = KILN_DEVICE_CPU};
    CHECK_MSG(!kiln_model_describe(KILN_MODEL_DIR, NULL, &l.info, &err), "%s", err.text);
    CHECK_MSG(!kiln_engine_create(&options, &l.engine, &err), "%s", err.text);
    CHECK_MSG(!kiln_model_load(l.engine, KILN_MODEL_DIR, &l.model, &err), "%s", err.text);
    CHECK_INT(l.info.defaults.width, MEASURE_SIZE);
    CHECK_INT(l.info.defaults.height, MEASURE_SIZE);
    return l;
}

static void unload(struct loaded *l) {
    kiln_model_destroy(l->model);
    kiln_engine_destroy(l->engine);
}

TEST(held_out_prompts_show_what_they_ask_for) {
    read_prompts();
    struct loaded l = load();
    struct run run = {0};
    const struct kiln_callbacks cb = {.ctx = &run, .image = on_image};
    for (run.next = 0; run.next < held.count; run.next += BATCH) {
        struct kn_task tasks[BATCH];
        char negative[] = "";
        struct kn_err err = {0};
        int n = held.count - run.next < BATCH ? held.count - run.next : BATCH;
        for (int i = 0; i < n; i++) {
            const struct prompt *p = &held.v[run.next + i];
            tasks[i] = (struct kn_task){
                .prompt = p->text, .negative = negative, .seed = p->seed, .set = KN_SET_SEED};
            CHECK_MSG(!kn_task_resolve(&tasks[i], &l.info, &err), "%s", err.text);
        }
        CHECK_MSG(!kiln_render(l.model, tasks, n, &cb, &err), "%s", err.text);
    }
    unload(&l);
    print("drawn by the model", &run.tally);
    print("the same, with the next prompt", &run.shuffled);
    CHECK_INT(run.tally.pictures, held.count);
    CHECK(percent(run.tally.colour, run.tally.objects) >= COLOUR_WANTED);
    CHECK(percent(run.tally.shape, run.tally.objects) >= SHAPE_WANTED);
    /* a model that paid no heed to the prompt would do as well here */
    CHECK(percent(run.shuffled.shape, run.shuffled.objects) < 15);
}

static int count_image(void *ctx, const struct kiln_image *image) {
    *(int *)ctx += image->status == 0;
    return 0;
}

TEST(other_prompts_render_without_error) {
    static const char *const prompts[] = {
        "",
        "a photograph of an astronaut riding a horse, highly detailed, trending",
        "Ein rotes Quadrat über dem Kreis, Größe 10, ☃ 漢字 🎨",
        "red red red red red red red red red red red red red red red red red red red red red red red red red "
        "red red red red red red red red red red red red red red red red red red red red red red red red red",
    };
    struct loaded l = load();
    int rendered = 0;
    const struct kiln_callbacks cb = {.ctx = &rendered, .image = count_image};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        struct kn_err err = {0};
        char text[512], negative[] = "a blue ring";
        snprintf(text, sizeof text, "%s", prompts[i]);
        struct kn_task task = {
            .prompt = text, .negative = negative, .seed = i, .set = KN_SET_NEGATIVE | KN_SET_SEED};
        CHECK_MSG(!kn_task_resolve(&task, &l.info, &err), "%s", err.text);
        CHECK_MSG(!kiln_render(l.model, &task, 1, &cb, &err), "%s", err.text);
    }
    unload(&l);
    CHECK_INT(rendered, (int)(sizeof prompts / sizeof *prompts));
}
