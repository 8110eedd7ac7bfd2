/* The readers of prompt files. Tables of inputs: what each means, and what each mistake is answered with. */
#include <unistd.h>

#include "base/prompts.h"
#include "tests/unit/check.h"

static struct kn_tasks got;
static struct kn_err err;
static bool strict; /* how parse() reads */

static int parse_n(const char *name, const char *text, size_t len) {
    kn_tasks_fini(&got);
    err = (struct kn_err){0};
    return kn_prompts_parse(name, KN_INPUT_AUTO, strict, text, len, &got, &err);
}

static int parse(const char *name, const char *text) {
    return parse_n(name, text, strlen(text));
}

struct mistake {
    const char *text, *want;
};

static void check_mistakes(const char *name, const struct mistake *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        int rc = parse(name, cases[i].text);
        CHECK_MSG(rc != 0, "accepted: %s", cases[i].text);
        CHECK_STR(err.text, cases[i].want);
        CHECK_INT(err.code, rc);
        CHECK_INT(got.count, 0);
    }
}
#define CHECK_MISTAKES(name, cases) check_mistakes(name, cases, sizeof(cases) / sizeof *(cases))

/* --- bytes --- */

TEST(a_line_ends_with_lf_cr_or_both_in_every_format) {
    static const char *const inputs[][2] = {
        {"p.txt", "a\rb\r\nc\n\rd"},
        {"p.jsonl", "{\"prompt\":\"a\"}\r{\"prompt\":\"b\"}\r\n{\"prompt\":\"c\"}\n\r{\"prompt\":\"d\"}"},
        {"p.csv", "prompt,x\ra,1\rb,2\r\nc,3\n\rd,4\r"},
        {"p.tsv", "prompt\r\n\"a\"\rb\rc\rd"},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        CHECK_INT(parse(inputs[i][0], inputs[i][1]), 0);
        CHECK_INT(got.count, 4);
        for (size_t k = 0; k < 4; k++) CHECK_STR(got.v[k].prompt, ((const char *[]){"a", "b", "c", "d"})[k]);
    }
    CHECK(parse("p.txt", "a\rb\r\nc --steps 0\r") != 0); /* and lines are counted so */
    CHECK_STR(err.text, "p.txt:3: steps: 0 is not between 1 and 1000");
    CHECK(parse("p.txt", "a\rb\r\nc\xff\r") != 0);
    CHECK(strncmp(err.text, "p.txt:3: not UTF-8 (byte 2 of the line", 38) == 0);
    CHECK_INT(parse("p.csv", "prompt\r\n\"two\r\nlines\"\r\n"), 0);
    CHECK_STR(got.v[0].prompt, "two\nlines");
}

TEST(a_character_that_may_end_a_line_never_joins_two_prompts) {
    static const struct mistake lines[] = {
        {"a\nb\xe2\x80\xa8"
         "c",
         "p.txt:2: U+2028 (line separator), at byte 2 of the line, may end it or not: put a line's end or a blank "
         "there"},
        {"a\xe2\x80\xa9"
         "b",
         "p.txt:1: U+2029 (paragraph separator), at byte 2 of the line, may end it or not: put a line's end or a "
         "blank there"},
        {"a\xc2\x85"
         "b",
         "p.txt:1: U+0085 (next line), at byte 2 of the line, may end it or not: put a line's end or a blank there"},
        {"a\vb",
         "p.txt:1: a vertical tab, at byte 2 of the line, may end it or not: put a line's end or a blank there"},
        {"a\n\f",
         "p.txt:2: a form feed, at byte 1 of the line, may end it or not: put a line's end or a blank there"},
        {"a\x1e"
         "b",
         "p.txt:1: U+001E (record separator), at byte 2 of the line, may end it or not: put a line's end or a blank "
         "there"},
        {"# a\xe2\x80\xa8"
         "b",
         "p.txt:1: U+2028 (line separator), at byte 4 of the line, may end it or not: put a line's end or a blank "
         "there"},
        {"a\xef\xbb\xbf"
         "b",
         "p.txt:1: U+FEFF (byte order mark; two files joined?), at byte 2 of the line, may end it or not: put a "
         "line's end or a blank there"},
    };
    CHECK_MISTAKES("p.txt", lines);
    static const struct mistake rows[] = {
        {"x,prompt\n1,a\xe2\x80\xa8"
         "2,b",
         "p.csv:2: U+2028 (line separator), in column 2, may end a line or not: put quotes around the field, or a "
         "line's end or a blank there"},
    };
    CHECK_MISTAKES("p.csv", rows);
    /* quotes say where a prompt ends */
    CHECK_INT(parse("p.csv",
                    "prompt\n\"a\xe2\x80\xa8"
                    "b\""),
              0);
    CHECK_STR(got.v[0].prompt,
              "a\xe2\x80\xa8"
              "b");
    CHECK_INT(parse("p.jsonl",
                    "{\"prompt\":\"a\xc2\x85"
                    "b\"}"),
              0);
    CHECK_STR(got.v[0].prompt,
              "a\xc2\x85"
              "b");
}

TEST(byte_order_marks_of_joined_files_are_passed_over) {
    CHECK_INT(parse("p.txt",
                    "\xef\xbb\xbf\xef\xbb\xbf"
                    "a\n\xef\xbb\xbf"
                    "b\n\xef\xbb\xbf# c\n"),
              0);
    CHECK_INT(got.count, 2);
    CHECK_STR(got.v[0].prompt, "a");
    CHECK_STR(got.v[1].prompt, "b");
    CHECK_INT(parse("p.jsonl", "\xef\xbb\xbf{\"prompt\":\"a\"}\n\xef\xbb\xbf{\"prompt\":\"b\"}\n"), 0);
    CHECK_INT(got.count, 2);
    CHECK_INT(parse("p.csv", "\xef\xbb\xbf\xef\xbb\xbfprompt\na\n"), 0);
    CHECK_INT(got.count, 1);
}

#define PARSE_BYTES(name, text) parse_n(name, text, sizeof(text) - 1)

TEST(utf_16_with_its_mark_is_read) {
    /* "ä\r\n😀 b\rc", of either byte order */
    CHECK_INT(PARSE_BYTES("p.txt", "\xff\xfe\xe4\0\r\0\n\0\x3d\xd8\0\xde \0b\0\r\0c\0"), 0);
    CHECK_INT(got.count, 3);
    CHECK_STR(got.v[0].prompt, "\xc3\xa4");
    CHECK_STR(got.v[1].prompt, "\xf0\x9f\x98\x80 b");
    CHECK_STR(got.v[2].prompt, "c");
    CHECK_INT(PARSE_BYTES("p.txt", "\xfe\xff\0\xe4\0\r\0\n\xd8\x3d\xde\0\0 \0b\0\r\0c"), 0);
    CHECK_INT(got.count, 3);
    CHECK_STR(got.v[1].prompt, "\xf0\x9f\x98\x80 b");
    CHECK_INT(PARSE_BYTES("p.txt", "\xff\xfe\xac\x20"), 0);
    CHECK_STR(got.v[0].prompt, "\xe2\x82\xac");
    CHECK_INT(PARSE_BYTES("p.csv", "\xff\xfep\0r\0o\0m\0p\0t\0\r\0\n\0a\0\r\0\n\0"), 0);
    CHECK_INT(got.count, 1);
    CHECK(PARSE_BYTES("p.txt",
                      "\xff\xfe"
                      "a\0\n\0b\0\x3d\xd8") != 0);
    CHECK_STR(err.text, "p.txt:2: half a surrogate pair in UTF-16 (character 2 of the line)");
    CHECK(PARSE_BYTES("p.txt", "\xff\xfe\0\xde") != 0);
    CHECK_STR(err.text, "p.txt:1: half a surrogate pair in UTF-16 (character 1 of the line)");
    CHECK(PARSE_BYTES("p.txt",
                      "\xff\xfe\x3d\xd8"
                      "a\0") != 0);
    CHECK(PARSE_BYTES("p.txt",
                      "\xff\xfe"
                      "a\0\n\0b") != 0);
    CHECK_STR(err.text, "p.txt:2: UTF-16 of an odd number of bytes: the file is cut short");
    CHECK(PARSE_BYTES("p.txt",
                      "\xff\xfe"
                      "a\0\r\0\n\0b\0\0\0") != 0);
    CHECK_STR(err.text, "p.txt:2: a NUL in UTF-16 (character 2 of the line)");
}

TEST(other_encodings_are_refused_with_the_command_that_converts) {
    CHECK(PARSE_BYTES("my prompts.csv", "prompt;note\r\ncaf\xe9;\x93so\x94\r\n") != 0);
    CHECK_STR(err.text,
              "my prompts.csv:2: not UTF-8 (byte 4 of the line is 0xE9): this looks like Windows-1252; to "
              "convert it: iconv -f WINDOWS-1252 -t UTF-8 'my prompts.csv' > utf8.csv");
    CHECK(PARSE_BYTES("p's.txt", "caf\xe9") != 0);
    CHECK(strstr(err.text, "-t UTF-8 FILE > utf8.txt") != NULL);
    CHECK(PARSE_BYTES("-x.txt", "caf\xe9") != 0); /* iconv would take the name for options */
    CHECK(strstr(err.text, "-t UTF-8 FILE > utf8.txt") != NULL);
    kn_tasks_fini(&got);
    CHECK(kn_prompts_parse("standard input", KN_INPUT_TXT, false, "caf\xe9", 4, &got, &err) != 0);
    CHECK(strstr(err.text, "iconv -f WINDOWS-1252 -t UTF-8 | kiln") != NULL);
    /* a run of bytes is another script, and beside whole characters one alone is damage */
    static const char *const others[] = {"\xcf\xf0\xe8\xe2\xe5\xf2 \xec\xe8\xf0",
                                         "caf\xc3\xa9 \xe9 \xe9 caf\xe9", "f\x81r", "a\xe2\x82"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        CHECK(parse("p.txt", others[i]) != 0);
        CHECK_MSG(strstr(err.text, "damaged, or in another encoding; iconv") != NULL, "%s", err.text);
    }
    CHECK(PARSE_BYTES("p.txt", "a\0 \0c\0a\0t\0\n\0") != 0);
    CHECK_STR(err.text,
              "p.txt:1: a NUL byte (byte 2 of the line): this looks like UTF-16LE without its mark; to "
              "convert it: iconv -f UTF-16LE -t UTF-8 p.txt > utf8.txt");
    CHECK(PARSE_BYTES("p.txt", "\0a\0 \0c\0a\0t\0\n") != 0);
    CHECK(strstr(err.text, "iconv -f UTF-16BE -t") != NULL);
    CHECK(PARSE_BYTES("p.txt", "a\0\0\0b\0\0\0") != 0);
    CHECK(strstr(err.text, "iconv -f UTF-32LE -t") != NULL);
    CHECK(PARSE_BYTES("p.txt", "\xff\xfe\0\0a\0\0\0") != 0);
    CHECK_STR(err.text,
              "p.txt:1: UTF-32 is not read; to convert it: iconv -f UTF-32 -t UTF-8 p.txt > utf8.txt");
    CHECK(PARSE_BYTES("p.txt", "\0\0\xfe\xff\0\0\0a") != 0);
    CHECK(strstr(err.text, "iconv -f UTF-32 -t") != NULL);
}

/* --- .txt --- */

TEST(txt_is_a_prompt_a_line_without_empty_lines_and_comments) {
    CHECK_INT(parse("p.txt", "\xef\xbb\xbf  a cat  \r\n\n# not this\n   \na dog"), 0);
    CHECK_INT(got.count, 2);
    CHECK_STR(got.v[0].prompt, "a cat");
    CHECK_STR(got.v[1].prompt, "a dog");
    CHECK_STR(got.v[0].negative, "");
    CHECK_INT(got.v[0].set, 0);
    CHECK(got.v[0].extra == NULL && got.v[0].model == NULL);
    CHECK_INT(parse("p.txt", ""), 0);
    CHECK_INT(got.count, 0);
    CHECK_INT(parse("p.txt", "\n# only this"), 0);
    CHECK_INT(got.count, 0);
}

TEST(txt_dashes_are_text_unless_a_letter_follows) {
    static const char *const texts[] = {
        "a cat -- a dog",    "a--b",       "x --", "-- y", "1 --2 3", "a cat -- -x",
        "well--known thing", "a---b --- c"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        CHECK_INT(parse("p.txt", texts[i]), 0);
        CHECK_INT(got.count, 1);
        CHECK_STR(got.v[0].prompt, texts[i]);
        CHECK_INT(got.v[0].set, 0);
    }
}

TEST(txt_options_are_those_of_a1111_and_kilns_own) {
    CHECK_INT(
        parse(
            "p.txt",
            "a cat, \"the\" cat --negative_prompt \"blurry, bad\" --sampler_name \"Euler a\" --cfg_scale 7.5"
            " --sd_model tiny --width 512 --height 768 --seed 18446744073709551615 --steps 30\n"
            "b --negative=low --sampler ddim --schedule normal --cfg=0 --model 'a b' --size 64x32 --seed=0 "
            "--STEPS=1\n"
            "--prompt \"c \\\"d\\\" \\(e\\)\" --steps 2\n"
            "--prompt f g -- h --cfg-scale 1e1 --negative i  j\n"
            "k --negative \"\" --seed -1\n"),
        0);
    CHECK_INT(got.count, 5);
    const struct kn_task *t = &got.v[0];
    CHECK_STR(t->prompt, "a cat, \"the\" cat");
    CHECK_STR(t->negative, "blurry, bad");
    CHECK_STR(t->model, "tiny");
    CHECK_U64(t->seed, UINT64_MAX);
    CHECK(t->sampler == KN_SAMPLER_EULER_A && t->cfg == 7.5f && t->width == 512 && t->height == 768 &&
          t->steps == 30);
    CHECK_INT(t->set, KN_SET_ALL & ~KN_SET_SCHEDULE);
    t = &got.v[1];
    CHECK_STR(t->model, "a b");
    CHECK_STR(t->negative, "low");
    CHECK_INT(t->set, KN_SET_ALL);
    CHECK(t->sampler == KN_SAMPLER_DDIM && t->schedule == KN_SCHEDULE_NORMAL && t->cfg == 0.0f &&
          t->width == 64 && t->height == 32 && t->seed == 0 && t->steps == 1);
    CHECK_STR(got.v[2].prompt, "c \"d\" \\(e\\)");
    CHECK_STR(got.v[3].prompt, "f g -- h");
    CHECK_STR(got.v[3].negative, "i j");
    CHECK(got.v[3].cfg == 10.0f);
    CHECK_STR(got.v[4].negative, "");
    CHECK_INT(got.v[4].set, KN_SET_NEGATIVE); /* a seed of -1 is none */
}

TEST(txt_mistakes_are_named) {
    static const struct mistake cases[] = {
        {"a\nb --stesp 3", "p.txt:2: stesp: unknown, did you mean steps?"},
        {"a --frobnicate 1",
         "p.txt:1: frobnicate: unknown; known are prompt, negative, seed, sampler, schedule, steps, cfg, "
         "size, "
         "width, height, model, images"},
        {"\n\na --steps 0", "p.txt:3: steps: 0 is not between 1 and 1000"},
        {"a --steps 1001", "p.txt:1: steps: 1001 is not between 1 and 1000"},
        {"a --steps -5", "p.txt:1: steps: -5 is not between 1 and 1000"},
        {"a --steps 99999999999999999999999",
         "p.txt:1: steps: 99999999999999999999999 is not between 1 and 1000"},
        {"a --steps 3.5", "p.txt:1: steps: \"3.5\" is not a whole number"},
        {"a --steps 3x", "p.txt:1: steps: \"3x\" is not a whole number"},
        {"a --steps", "p.txt:1: steps: needs a value"},
        {"a --steps --seed 3", "p.txt:1: steps: needs a value"},
        {"a --steps=", "p.txt:1: steps: \"\" is not a whole number"},
        {"a --steps 3 --steps 4", "p.txt:1: steps: given twice"},
        {"a --cfg 3 --cfg_scale 4", "p.txt:1: cfg_scale: given twice"},
        {"a --prompt b", "p.txt:1: prompt: given twice"},
        {"a --seed 18446744073709551616",
         "p.txt:1: seed: 18446744073709551616 is not between 0 and 18446744073709551615"},
        {"a --seed -2", "p.txt:1: seed: -2 is not between 0 and 18446744073709551615"},
        {"a --cfg nan", "p.txt:1: cfg: \"nan\" is not a number"},
        {"a --cfg inf", "p.txt:1: cfg: \"inf\" is not a number"},
        {"a --cfg 0x10", "p.txt:1: cfg: \"0x10\" is not a number"},
        {"a --cfg 1e99", "p.txt:1: cfg: 1e99 is not between 0 and 100"},
        {"a --cfg -1", "p.txt:1: cfg: -1 is not between 0 and 100"},
        {"a --sampler Eulr", "p.txt:1: sampler: \"Eulr\" is not one of " KN_SAMPLER_LIST "; did you mean "
                             "Euler?"},
        {"a --sampler Euler a",
         "p.txt:1: \"a\" belongs to no option; put quotes around a value that holds blanks"},
        {"a --sampler ddim --schedule karras",
         "p.txt:1: schedule: karras means nothing with the sampler DDIM"},
        {"a --size 512", "p.txt:1: size: \"512\" is not WIDTHxHEIGHT, as in 512x768"},
        {"a --size 512x500", "p.txt:1: height: 500 is not a multiple of 8"},
        {"a --size 512x512 --width 512", "p.txt:1: width: given twice"},
        {"a --width 500", "p.txt:1: width: 500 is not a multiple of 8"},
        {"a --height 5120", "p.txt:1: height: 5120 is not between 16 and 4096"},
        {"a --width 8 --height 8", "p.txt:1: width: 8 is not between 16 and 4096"},
        {"a --images 0", "p.txt:1: images: 0 is not between 1 and 100000"},
        {"a --images 2 --n_iter 2", "p.txt:1: n_iter: given twice"},
        {"a --n_iter 1000 --batch_size 1000", "p.txt:1: images: n_iter times batch_size is more than 100000"},
        {"a --images 2 --seed 18446744073709551615", "p.txt:1: seed: 2 images go past 18446744073709551615"},
        {"a --negative \"b", "p.txt:1: a quote (\") is not closed"},
        {"a --negative b's", "p.txt:1: a quote (') is not closed"},
        {"--steps 3", "p.txt:1: prompt: missing"},
        {"a --model ''", "p.txt:1: model: is empty"},
        {"a --tiling", "p.txt:1: tiling: not supported"},
        {"a --subseed 3", "p.txt:1: subseed: not supported"},
        {"a --restore_faces true", "p.txt:1: restore_faces: not supported"},
        {"a --styles x", "p.txt:1: styles: not supported"},
        {"a --do_not_save_samples", "p.txt:1: do_not_save_samples: not supported"},
        {"a --outpath_samples /tmp", "p.txt:1: outpath_samples: not supported"},
        {"a\nb\xff",
         "p.txt:2: not UTF-8 (byte 2 of the line is 0xFF): this looks like Windows-1252; to convert it: iconv -f "
         "WINDOWS-1252 -t UTF-8 p.txt > utf8.txt"},
    };
    CHECK_MISTAKES("p.txt", cases);
    CHECK_INT(parse_n("p.txt", "a\nb\0c", 5), KN_EPARSE);
    CHECK_STR(err.text, "p.txt:2: a NUL byte (byte 2 of the line): is this a text file?");
}

TEST(txt_block_of_generation_data_is_one_prompt_with_its_settings) {
    CHECK_INT(
        parse(
            "p.txt",
            "# pasted\na cat,  \r\n  (sitting:1.2)\nNegative prompt: blurry,\nlow: bad\n"
            "Steps: 30, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 18446744073709551615, "
            "Size: 512x768, Model hash: 6ce0161689, Model: \"my, model\", Clip skip: 1, Version: v1.9.4\n"
            "a dog\nSteps: 20, Sampler: DDIM, Seed: 5\n\n\n"
            "a \\ bird\n\nNegative prompt: x\n\ny\n"
            "Steps: 9, Sampler: DPM++ 2M Karras, CFG scale: 3, Template: \"a\\nb: c\", User: [x] y, App: \n"),
        0);
    CHECK_INT(got.count, 3);
    const struct kn_task *t = &got.v[0];
    CHECK_STR(t->prompt, "a cat,\n(sitting:1.2)");
    CHECK_STR(t->negative, "blurry,\nlow: bad");
    CHECK_STR(t->model, "my, model");
    CHECK_STR(t->extra, "{\"Model hash\":\"6ce0161689\",\"Clip skip\":\"1\",\"Version\":\"v1.9.4\"}");
    CHECK_U64(t->seed, UINT64_MAX);
    CHECK(t->sampler == KN_SAMPLER_EULER_A && t->schedule == KN_SCHEDULE_KARRAS && t->steps == 30 &&
          t->cfg == 7.5f && t->width == 512 && t->height == 768);
    CHECK_INT(t->set, KN_SET_ALL);
    CHECK_INT(t->line, 6);
    t = &got.v[1];
    CHECK_STR(t->prompt, "a dog");
    CHECK_STR(t->negative, "");
    CHECK_INT(t->set, KN_SET_STEPS | KN_SET_SAMPLER | KN_SET_SCHEDULE | KN_SET_SEED);
    CHECK_INT(t->schedule, KN_SCHEDULE_NORMAL); /* the model's own spacing, which A1111 did not write then */
    t = &got.v[2];
    CHECK_STR(t->prompt, "a \\ bird");
    CHECK_STR(t->negative, "x\n\ny");
    CHECK(t->sampler == KN_SAMPLER_DPMPP_2M && t->schedule == KN_SCHEDULE_KARRAS);
    CHECK_STR(t->extra, "{\"Template\":\"a\\nb: c\",\"User\":\"[x] y\",\"App\":\"\"}");
}

TEST(txt_automatic_is_the_samplers_schedule_in_a1111) {
    CHECK_INT(parse("p.txt",
                    "a\nSteps: 1, Sampler: DPM++ 2M, Schedule type: Automatic\n"
                    "b\nSteps: 1, Sampler: Euler, Schedule type: Automatic\n"
                    "c\nSeed: 4, Steps: 1, Size: 64x64\n"),
              0);
    CHECK_INT(got.v[0].schedule, KN_SCHEDULE_KARRAS);
    CHECK_INT(got.v[1].schedule, KN_SCHEDULE_NORMAL);
    CHECK_INT(got.v[2].set,
              KN_SET_SEED | KN_SET_STEPS | KN_SET_SIZE); /* the line need not begin with Steps */
}

TEST(txt_reads_the_parameters_that_kiln_writes) {
    static char prompt[] = "a cat,\n\"the\" cat: 3", negative[] = "b";
    struct kn_task t = {.prompt = prompt,
                        .negative = negative,
                        .seed = 77,
                        .cfg = 0.1f,
                        .steps = 3,
                        .width = 64,
                        .height = 32,
                        .sampler = KN_SAMPLER_DPMPP_2M,
                        .schedule = KN_SCHEDULE_KARRAS,
                        .set = KN_SET_ALL};
    struct kn_model_info m = {.name = "a, \"b\": c", .sha256 = {0xab}};
    struct kn_buf b;
    kn_buf_init(&b, 4096);
    CHECK_INT(kn_task_parameters(&t, &m, "kiln 1", &b), 0);
    CHECK_INT(parse("p.txt", b.data), 0);
    kn_buf_fini(&b);
    CHECK_INT(got.count, 1);
    uint8_t want[KN_SHA256_BYTES], have[KN_SHA256_BYTES];
    kn_task_key(&t, m.sha256, want);
    kn_task_key(&got.v[0], m.sha256, have);
    CHECK(memcmp(want, have, sizeof want) == 0);
    CHECK_STR(got.v[0].model, "a, \"b\": c");
}

TEST(txt_mistakes_in_generation_data_are_named) {
    static const struct mistake cases[] = {
        {"a\nSteps: 20, Sampler: Euler, Denoising strength: 0.7, Hires upscale: 2",
         "p.txt:2: Denoising strength: not supported; take it out of the line to render without it"},
        {"a\nSteps: 20, Seed: 1, Hires upscale: 2",
         "p.txt:2: Hires upscale: not supported; take it out of the line to render without it"},
        {"a\nSteps: 20, Seed: 1, Clip skip: 2",
         "p.txt:2: Clip skip: not supported; take it out of the line to render without it"},
        {"a\nSteps: 20, Seed: 1, Lora hashes: \"x: 1, y: 2\"",
         "p.txt:2: Lora hashes: not supported; take it out of the line to render without it"},
        {"a\nSteps: 20, Seed: 1, Civitai resources: [{\"a\":1,\"b\":2}]",
         "p.txt:2: Civitai resources: not supported; take it out of the line to render without it"},
        {"a\nSteps: 0, Seed: 1, CFG scale: 7", "p.txt:2: Steps: 0 is not between 1 and 1000"},
        {"a\n\n\nSteps: 5, Seed: x, CFG scale: 7", "p.txt:4: Seed: \"x\" is not a whole number"},
        {"a\nSteps: 5, Seed: 1, Seed: 1", "p.txt:2: Seed: given twice"},
        {"a\nSteps: 5, Version: 1, Version: 2", "p.txt:2: Version: given twice"},
        {"a\nSteps: 5, Schedule type: Karras, Schedule type: Karras", "p.txt:2: Schedule type: given twice"},
        {"a\nSteps: 5, Sampler: DPM++ SDE Magic, Seed: 1",
         "p.txt:2: Sampler: \"DPM++ SDE Magic\" is not one of " KN_SAMPLER_LIST},
        {"a\nSteps: 5, Schedule type: Automatic, Seed: 1",
         "p.txt:2: Schedule type: Automatic, with the sampler unnamed: name the schedule"},
        {"a\nSteps: 5, Sampler: DDIM, Schedule type: Karras",
         "p.txt:2: schedule: karras means nothing with the sampler DDIM"},
        {"a\nSteps: 5, Seed: 1",
         "p.txt:2: a line of settings has 3 at least, as in Steps: 20, Sampler: Euler, Seed: 1"},
        {"a\nSteps: 5, Seed: 1, and more",
         "p.txt:2: \"and more\" is not Key: value, as a line of settings has them"},
        {"a\nSteps: 5, Seed: 1, User: \"x",
         "p.txt:2: \"User: \"x\" is not Key: value, as a line of settings has them"},
        {"a\nSteps: 5, Seed: 1, User: \"x\" y",
         "p.txt:2: \"User: \"x\" y\" is not Key: value, as a line of settings has them"},
        {"\nSteps: 5, Seed: 1, Size: 64x64", "p.txt:2: prompt: missing"},
        {"Negative prompt: b\nSteps: 5, Seed: 1, Size: 64x64", "p.txt:2: prompt: missing"},
        {"a cat\n\na dog\nSteps: 5, Seed: 1, Size: 64x64",
         "p.txt:3: an empty line stands before this one, within a prompt of generation data: take it out if it is one "
         "prompt; plain prompts go into a file of their own"},
        {"a dog\nSteps: 5, Seed: 1, Size: 64x64\n\na cat\na bird",
         "p.txt:4: no line of settings (Steps: …) ends this, as in the generation data above; plain prompts go into a "
         "file of their own"},
        {"a --steps 3\nb\nSteps: 5, Seed: 1, Size: 64x64",
         "p.txt:1: options (--…) do not go with generation data: its settings are in its last line"},
        {"a\nNegative prompt: b\nNegative prompt: c\nSteps: 5, Seed: 1, Size: 64x64",
         "p.txt:3: a second \"Negative prompt:\" before a line of settings"},
        {"a\nNegative prompt: b",
         "p.txt:2: \"Negative prompt:\" needs a line of settings below it (Steps: 20, Sampler: …); in a list of prompts "
         "write a cat --negative \"blurry\""},
    };
    CHECK_MISTAKES("p.txt", cases);
    /* text that only resembles it is a prompt */
    static const char *const texts[] = {"Steps: a stairway, oil, dark", "Steps: 3 stairs, oil",
                                        "a: b, c: d, e: f", "x Negative prompt: y",
                                        "Style: oil, Mood: dark, Light: low"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        CHECK_INT(parse("p.txt", texts[i]), 0);
        CHECK_STR(got.v[0].prompt, texts[i]);
    }
    static char text[KN_PROMPT_BYTES_MAX + 100];
    memset(text, 'p', KN_PROMPT_BYTES_MAX);
    strcpy(text + KN_PROMPT_BYTES_MAX, "\nq\nSteps: 5, Seed: 1, Size: 64x64");
    CHECK(parse("p.txt", text) != 0);
    CHECK_STR(err.text, "p.txt:1: prompt: 8194 bytes are more than 8192");
}

TEST(prompt_longer_than_the_limit_is_refused_with_its_line) {
    static char text[KN_PROMPT_BYTES_MAX + 16];
    memcpy(text, "ok\n", 3);
    memset(text + 3, 'p', KN_PROMPT_BYTES_MAX + 1);
    CHECK_INT(parse("p.txt", text), KN_ELIMIT);
    CHECK_STR(err.text, "p.txt:2: prompt: 8193 bytes are more than 8192");
    CHECK_INT(got.count, 0);
    text[3 + KN_PROMPT_BYTES_MAX] = '\0';
    CHECK_INT(parse("p.txt", text), 0);
    CHECK_INT(got.count, 2);
}

/* --- .jsonl --- */

TEST(jsonl_reads_every_field_and_keeps_seeds_exact) {
    CHECK_INT(
        parse("p.jsonl",
              "{\"prompt\":\"a \\\"cat\\\" "
              "\\u00e4\\ud83d\\ude00\\n/\\/\",\"negative\":\"n\",\"seed\":18446744073709551615,"
              "\"sampler\":\"Euler a\",\"schedule\":\"karras\",\"steps\":30,\"cfg\":7.5,\"size\":\"512x768\","
              "\"model\":\"tiny\",\"extra\":{\"id\": 9007199254740993, \"t\":[1,{\"x\":null}]}}\r\n"
              "\n"
              "  { \"prompt\" : \"b\" , \"seed\" : 9223372036854775809 , \"width\" : 64 , \"height\" : 32 , "
              "\"steps\":null }  "),
        0);
    CHECK_INT(got.count, 2);
    const struct kn_task *t = &got.v[0];
    CHECK_STR(t->prompt, "a \"cat\" \xc3\xa4\xf0\x9f\x98\x80\n//");
    CHECK_U64(t->seed, UINT64_MAX);
    CHECK_INT(t->set, KN_SET_ALL);
    CHECK(t->steps == 30 && t->cfg == 7.5f && t->width == 512 && t->height == 768);
    CHECK_STR(t->extra, "{\"id\": 9007199254740993, \"t\":[1,{\"x\":null}]}");
    CHECK_U64(got.v[1].seed, 9223372036854775809u);
    CHECK_INT(got.v[1].set, KN_SET_SEED | KN_SET_SIZE);
}

TEST(jsonl_mistakes_are_named) {
    static const struct mistake cases[] = {
        {"{\"prompt\":\"a\"}\n{\"prompt\":\"a\",\"stesp\":3}",
         "p.jsonl:2: stesp: unknown, did you mean steps?"},
        {"{\"prompt\":\"a\",\"steps\":0}", "p.jsonl:1: steps: 0 is not between 1 and 1000"},
        {"{\"prompt\":\"a\",\"steps\":20.5}", "p.jsonl:1: steps: \"20.5\" is not a whole number"},
        {"{\"prompt\":\"a\",\"steps\":\"20\"}", "p.jsonl:1: steps: \"20\" is a string, not a number"},
        {"{\"prompt\":\"a\",\"steps\":007}", "p.jsonl:1: steps: 007 is not a number"},
        {"{\"prompt\":\"a\",\"steps\":+7}", "p.jsonl:1: steps: +7 is not a number"},
        {"{\"prompt\":\"a\",\"steps\":true}", "p.jsonl:1: steps: true is not a number"},
        {"{\"prompt\":\"a\",\"steps\":[1]}", "p.jsonl:1: steps: is not a number"},
        {"{\"prompt\":\"a\",\"cfg\":NaN}", "p.jsonl:1: cfg: NaN is not a number"},
        {"{\"prompt\":\"a\",\"cfg\":Infinity}", "p.jsonl:1: cfg: Infinity is not a number"},
        {"{\"prompt\":\"a\",\"cfg\":1e400}", "p.jsonl:1: cfg: 1e400 is not between 0 and 100"},
        {"{\"prompt\":\"a\",\"cfg\":1.}", "p.jsonl:1: cfg: 1. is not a number"},
        {"{\"prompt\":\"a\",\"seed\":18446744073709551616}",
         "p.jsonl:1: seed: 18446744073709551616 is not between 0 and 18446744073709551615"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "p.jsonl:1: prompt: given twice"},
        {"{\"prompt\":\"a\",\"cfg\":1,\"cfg_scale\":1}", "p.jsonl:1: cfg_scale: given twice"},
        {"{\"prompt\":\"a\",\"seed\":null,\"seed\":1}", "p.jsonl:1: seed: given twice"},
        {"{\"prompt\":7}", "p.jsonl:1: prompt: 7 is not a string"},
        {"{\"prompt\":null}", "p.jsonl:1: prompt: missing"},
        {"{}", "p.jsonl:1: prompt: missing"},
        {"{\"prompt\":\"a\"} x", "p.jsonl:1: something follows the JSON object"},
        {"{\"prompt\":\"a\"}{\"prompt\":\"b\"}", "p.jsonl:1: something follows the JSON object"},
        {"{\"prompt\":\"a\",}", "p.jsonl:1: a key in quotes is missing"},
        {"{\"prompt\":\"a\"", "p.jsonl:1: prompt: a comma or a closing brace is missing after it"},
        {"{\"prompt\" \"a\"}", "p.jsonl:1: prompt: a colon is missing"},
        {"{'prompt':'a'}", "p.jsonl:1: a key in quotes is missing"},
        {"{\"prompt\":\"a", "p.jsonl:1: prompt: a string does not end"},
        {"{\"prompt\":\"a\tb\"}", "p.jsonl:1: prompt: a control character in a string"},
        {"{\"prompt\":\"a\\qb\"}", "p.jsonl:1: prompt: an unknown escape in a string"},
        {"{\"prompt\":\"a\\u12\"}", "p.jsonl:1: prompt: an unknown escape in a string"},
        {"{\"prompt\":\"a\\u0000\"}", "p.jsonl:1: prompt: a NUL in a string"},
        {"{\"prompt\":\"a\\ud83d\"}", "p.jsonl:1: prompt: half a surrogate pair in a string"},
        {"{\"prompt\":\"a\\ude00\\ud83d\"}", "p.jsonl:1: prompt: half a surrogate pair in a string"},
        {"\"a cat\"", "p.jsonl:1: a line holds one JSON object"},
        {"[]", "p.jsonl:1: a line holds one JSON object"},
        {"# no comments", "p.jsonl:1: a line holds one JSON object"},
        {"{\"prompt\":\"a\",\"extra\":\"x\"}", "p.jsonl:1: extra: \"x\" is a string, not an object"},
        {"{\"prompt\":\"a\",\"extra\":[1]}", "p.jsonl:1: extra: is not an object"},
        {"{\"prompt\":\"a\",\"extra\":{\"x\":NaN}}", "p.jsonl:1: extra: NaN and Infinity are not JSON"},
        {"{\"prompt\":\"a\",\"extra\":{\"x\":-Infinity}}", "p.jsonl:1: extra: NaN and Infinity are not JSON"},
        {"{\"prompt\":\"a\",\"extra\":{\"x\":1,}}",
         "p.jsonl:1: extra: malformed JSON, or nested deeper than 16"},
        {"{\"prompt\":\"a\",\"extra\":{\"x\":[}]}",
         "p.jsonl:1: extra: malformed JSON, or nested deeper than 16"},
        {"{\"prompt\":\"a\",\"extra\":{\"x\":1", "p.jsonl:1: extra: a bracket is not closed"},
        {"{\"prompt\":\"a\",\"subseed\":1}", "p.jsonl:1: subseed: not supported"},
        {"{\"prompt\":\"\xc3\"}",
         "p.jsonl:1: not UTF-8 (byte 12 of the line is 0xC3): this looks like Windows-1252; to convert it: iconv -f "
         "WINDOWS-1252 -t UTF-8 p.jsonl > utf8.jsonl"},
    };
    CHECK_MISTAKES("p.jsonl", cases);
}

TEST(jsonl_extra_nested_without_end_is_refused) {
    static char text[200000];
    int n = snprintf(text, sizeof text, "{\"prompt\":\"a\",\"extra\":");
    size_t len = (size_t)n;
    for (int i = 0; i < 30000; i++) len += (size_t)snprintf(text + len, sizeof text - len, "{\"a\":");
    len += (size_t)snprintf(text + len, sizeof text - len, "1");
    memset(text + len, '}', 30001);
    CHECK_INT(parse("p.jsonl", text), KN_EPARSE);
    CHECK_STR(err.text, "p.jsonl:1: extra: malformed JSON, or nested deeper than 16");
}

/* --- .csv, .tsv --- */

TEST(csv_reads_known_columns_whatever_their_case_and_keeps_the_rest_as_extra) {
    CHECK_INT(parse("p.csv",
                    "\xef\xbb\xbfid,Prompt,\"CFG scale\",Seed,note\r\n"
                    "7,\"a cat, \"\"the\"\" cat\",7.5,18446744073709551615,x\r\n"
                    "\r\n"
                    "8,\"two\nlines\", 3 ,,\n"
                    "9,c,,,\"\""),
              0);
    CHECK_INT(got.count, 3);
    CHECK_STR(got.v[0].prompt, "a cat, \"the\" cat");
    CHECK_STR(got.v[0].extra, "{\"id\":\"7\",\"note\":\"x\"}");
    CHECK_U64(got.v[0].seed, UINT64_MAX);
    CHECK_INT(got.v[0].set, KN_SET_CFG | KN_SET_SEED);
    CHECK_STR(got.v[1].prompt, "two\nlines");
    CHECK(got.v[1].cfg == 3.0f);
    CHECK_INT(got.v[1].set, KN_SET_CFG);
    CHECK_STR(got.v[2].extra, "{\"id\":\"9\",\"note\":\"\"}");
    CHECK_INT(got.v[2].set, 0);
}

TEST(csv_mistakes_name_the_line_where_the_record_begins) {
    static const struct mistake cases[] = {
        {"prompt,stesp\na,1", "p.csv:1: stesp: unknown, did you mean steps?"},
        {"text\na", "p.csv:1: no column is named prompt"},
        {"prompt,seed,Seed\na,1,1", "p.csv:1: Seed: two columns have this name (2 and 3)"},
        {"prompt,id,id\na,1,1", "p.csv:1: id: two columns have this name (2 and 3)"},
        {"prompt,cfg,cfg_scale\na,1,1", "p.csv:1: cfg_scale: two columns have this name (2 and 3)"},
        {"prompt,,b\na,1,1",
         "p.csv:2: \"1\" is in column 2, which the header does not name: name it there, or empty it"},
        {"prompt,tiling\na,1", "p.csv:1: tiling: not supported"},
        {"prompt,steps\n\"a\nb\nc\",5\nd,0", "p.csv:5: steps: 0 is not between 1 and 1000"},
        {"prompt,steps\n\"a\nb\",x", "p.csv:2: steps: \"x\" is not a whole number"},
        {"prompt,steps\na,5,6", "p.csv:2: 3 fields, but the header has 2"},
        {"prompt,steps\na", "p.csv:2: 1 fields, but the header has 2"},
        {"prompt,steps\n,5", "p.csv:2: prompt: is empty"},
        {"prompt\n\"a\nb", "p.csv:2: a quoted field does not end (column 1)"},
        {"prompt\n\"a\"b", "p.csv:2: something follows a quoted field (column 1)"},
        {"prompt,x\na,b\"c\"", "p.csv:2: a quote inside a field that does not begin with one (column 2)"},
        {"\n\nprompt,steps\na,5000", "p.csv:4: steps: 5000 is not between 1 and 1000"},
    };
    CHECK_MISTAKES("p.csv", cases);
}

TEST(csv_as_spreadsheets_export_it_is_read) {
    static const char *const inputs[] = {
        "prompt;Steps;cfg;seed;note\r\n\"a; b\";20,0;7,5;5.0;x,y\r\nc;;;-1,0;z\r\n",
        "sep=;\r\nprompt;Steps;cfg;seed;note\r\n\"a; b\";20;7,5;5;x,y\r\nc;;;;z\r\n",
        "\"sep=;\"\nprompt;Steps;cfg;seed;note;\n\"a; b\";20;7,50;5;x,y;\nc;;;-1;z;\n;;;;;\n;;\n",
        "\xef\xbb\xbfsep=\t\nprompt\tSteps\tcfg\tseed\tnote\na; b\t20\t7.5\t5\tx,y\nc\t\t\t\tz\n",
        "\n;;\nprompt;Steps;cfg;seed;note\n\na; b;20;7.5;5;x,y\nc;;;;z", /* one column too many: below */
        "prompt\tSteps\tcfg\tseed\tnote\t\t\r\na; b\t20.000\t7,5\t5\tx,y\t\t\r\n\t\t\t\t\t\t\r\nc\t\t\t\tz\t \t\r\n",
    };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        if (i == 4) {
            CHECK(parse("p.csv", inputs[i]) != 0);
            CHECK_STR(err.text, "p.csv:5: 6 fields, but the header has 5");
            continue;
        }
        CHECK_MSG(parse("p.csv", inputs[i]) == 0, "%zu: %s", i, err.text);
        CHECK_INT(got.count, 2);
        CHECK_STR(got.v[0].prompt, "a; b");
        CHECK(got.v[0].steps == 20 && got.v[0].cfg == 7.5f && got.v[0].seed == 5);
        CHECK_STR(got.v[0].extra, "{\"note\":\"x,y\"}");
        CHECK_STR(got.v[1].prompt, "c");
        CHECK_INT(got.v[1].set, 0);
    }
    CHECK_INT(parse("p.tsv", "sep=;\nprompt;cfg\na;7,5\n"), 0);
    CHECK(got.v[0].cfg == 7.5f);
    CHECK_INT(parse("p.csv", "prompt\na; b\n"), 0); /* one column, whatever is in its text */
    CHECK_STR(got.v[0].prompt, "a; b");
    CHECK_INT(parse("p.csv", "prompt,x;prompt\na,b;c\n"), 0); /* of two that would do, the comma */
    CHECK_STR(got.v[0].prompt, "a");
    CHECK_INT(parse("p.csv", ",prompt,\n,a,\n"), 0);
    CHECK(got.v[0].extra == NULL);
    static const struct mistake cases[] = {
        {"prompt;cfg\na;7,5,1", "p.csv:2: cfg: \"7,5,1\" is not a number"},
        {"prompt;steps\na;20,5", "p.csv:2: steps: \"20.5\" is not a whole number"},
        {"prompt,steps\na,20.5", "p.csv:2: steps: \"20.5\" is not a whole number"},
        {"prompt,steps\na,20.", "p.csv:2: steps: \"20.\" is not a whole number"},
        {"prompt,seed\na,1.5E+10", "p.csv:2: seed: \"1.5E+10\" is not a whole number"},
        {"prompt,cfg\na,\"7,5\"", "p.csv:2: cfg: \"7,5\" is not a number"},
        {"sep=;\nprompt,steps\na,1", "p.csv:2: no column is named prompt"},
        {"text;steps\na;1", "p.csv:1: no column is named prompt"},
        {"promt;seed\na;1", "p.csv:1: promt: unknown, did you mean prompt?"},
        {"prompt,,\na,1,",
         "p.csv:2: \"1\" is in column 2, which the header does not name: name it there, or empty it"},
        {"prompt,seed\na,1,,x", "p.csv:2: 4 fields, but the header has 2"},
    };
    CHECK_MISTAKES("p.csv", cases);
}

TEST(names_that_kiln_does_not_know_are_extra_unless_they_are_known_ones_misspelt) {
    static const char *const others[] = {"image", "mode", "site",    "weight", "step",
                                         "seeds", "text", "cgf",     "sede",   "sample",
                                         "state", "node", "height2", "x",      "models"};
    static const char *const misspelt[][2] = {
        {"stesp", "steps"},
        {"promt", "prompt"},
        {"promppt", "prompt"},
        {"widht", "width"},
        {"heigth", "height"},
        {"modle", "model"},
        {"smapler", "sampler"},
        {"imgaes", "images"},
        {"negativ", "negative"},
        {"scheduled", "schedule"},
        {"cfg_scal", "cfg_scale"},
        {"batch size s", NULL},
        {"Negative Promt", "negative_prompt"},
    };
    char text[200], want[200];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(text, sizeof text, "prompt,%s\na,1\n", others[i]);
        CHECK_MSG(parse("p.csv", text) == 0, "%s", err.text);
        snprintf(want, sizeof want, "{\"%s\":\"1\"}", others[i]);
        CHECK_STR(got.v[0].extra, want);
        snprintf(text, sizeof text, "{\"prompt\":\"a\",\"%s\":\"1\"}", others[i]);
        CHECK_MSG(parse("p.jsonl", text) == 0, "%s", err.text);
        CHECK_STR(got.v[0].extra, want);
        strict = true;
        CHECK_MSG(parse("p.jsonl", text) != 0, "%s", text);
        snprintf(want, sizeof want, "p.jsonl:1: %s: unknown", others[i]);
        CHECK(strncmp(err.text, want, strlen(want)) == 0);
        snprintf(text, sizeof text, "prompt,%s\na,1\n", others[i]);
        CHECK_MSG(parse("p.csv", text) != 0, "%s", text);
        strict = false;
    }
    for (size_t i = 0; i < sizeof misspelt / sizeof *misspelt; i++) {
        snprintf(text, sizeof text, "{\"prompt\":\"a\",\"%s\":1}", misspelt[i][0]);
        if (!misspelt[i][1]) {
            CHECK_INT(parse("p.jsonl", text), 0);
            continue;
        }
        CHECK_MSG(parse("p.jsonl", text) != 0, "%s", text);
        snprintf(want, sizeof want, "p.jsonl:1: %s: unknown, did you mean %s?", misspelt[i][0],
                 misspelt[i][1]);
        CHECK_STR(err.text, want);
        snprintf(text, sizeof text, "prompt,%s\na,1\n", misspelt[i][0]);
        CHECK_MSG(parse("p.csv", text) != 0, "%s", text);
    }
}

TEST(width_or_height_alone_leaves_the_other_to_the_defaults) {
    static const char *const inputs[][2] = {
        {"p.csv", "prompt,width,height\na,64,\nb,,32\n"},
        {"p.txt", "a --width 64\nb --height 32\n"},
        {"p.jsonl", "{\"prompt\":\"a\",\"width\":64}\n{\"prompt\":\"b\",\"height\":32}"}};
    struct kn_model_info m = {.name = "tiny",
                              .defaults = {KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 20, 7, 128, 256}};
    struct kn_task settings = {.width = 512, .height = 768, .set = KN_SET_SIZE};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        for (int applied = 0; applied < 2; applied++) {
            CHECK_INT(parse(inputs[i][0], inputs[i][1]), 0);
            if (applied) CHECK_INT(kn_tasks_apply(&got, &settings, &err), 0);
            CHECK_INT(kn_tasks_expand(&got, 1, 1, &err), 0);
            for (size_t k = 0; k < 2; k++) CHECK_INT(kn_task_resolve(&got.v[k], &m, &err), 0);
            CHECK_INT(got.v[0].width, 64);
            CHECK_INT(got.v[0].height, applied ? 768 : 256);
            CHECK_INT(got.v[1].width, applied ? 512 : 128);
            CHECK_INT(got.v[1].height, 32);
        }
    }
}

/* --- .json --- */

TEST(jsonl_keeps_keys_that_kiln_does_not_know_in_extra_as_they_stand) {
    CHECK_INT(
        parse("p.jsonl",
              "{\"tag\": \"x\", \"Prompt\":\"a\",\"big\":12345678901234567890123, \"extra\":{\"k\": 1.50}, "
              "\"l\":[1, {\"\\u00e4\":null}],\"CFG scale\":3.0,\"t\":true , \"steps\":20.0}\n"
              "{\"prompt\":\"b\",\"extra\":{ },\"n\":null}\n{\"prompt\":\"c\",\"extra\":null,\"n\":-1e5}\n"),
        0);
    CHECK_STR(
        got.v[0].extra,
        "{\"k\": 1.50,\"tag\":\"x\",\"big\":12345678901234567890123,\"l\":[1, {\"\\u00e4\":null}],\"t\":true}");
    CHECK(got.v[0].cfg == 3.0f && got.v[0].steps == 20);
    CHECK_STR(got.v[1].extra, "{ \"n\":null}");
    CHECK_STR(got.v[2].extra, "{\"n\":-1e5}");
    static const struct mistake cases[] = {
        {"{\"prompt\":\"a\",\"x\":1,\"x\":1}", "p.jsonl:1: x: given twice"},
        {"{\"prompt\":\"a\",\"x\":1,\"extra\":{\"x\":1}}", "p.jsonl:1: x: given twice, in extra too"},
        {"{\"prompt\":\"a\",\"extra\":{},\"extra\":{}}", "p.jsonl:1: extra: given twice"},
        {"{\"prompt\":\"a\",\"x\":NaN}", "p.jsonl:1: x: NaN is not a value of JSON"},
        {"{\"prompt\":\"a\",\"x\":[NaN]}", "p.jsonl:1: x: NaN and Infinity are not JSON"},
        {"{\"prompt\":\"a\",\"x\":[1", "p.jsonl:1: x: a bracket is not closed"},
        {"{\"prompt\":\"a\",\"x\":[1,]}", "p.jsonl:1: x: malformed JSON, or nested deeper than 16"},
        {"{\"prompt\":\"a\",\"x\":nul}", "p.jsonl:1: x: nul is not a value of JSON"},
        {"{\"prompt\":\"a\",\"x\":truely}", "p.jsonl:1: x: a comma or a closing brace is missing after it"},
        {"{\"prompt\":\"a\",\"x\":\"\\q\"}", "p.jsonl:1: x: an unknown escape in a string"},
    };
    CHECK_MISTAKES("p.jsonl", cases);
}

TEST(json_is_an_array_of_objects_or_of_strings) {
    CHECK_INT(
        parse("p.json",
              "\xef\xbb\xbf\n[\r\n  \"a \\\"cat\\\"\",\n\n  {\n    \"prompt\": \"b\",\n    \"seed\": 7,\n"
              "    \"id\": [\n1]\n  }\n, \"c\"]\n"),
        0);
    CHECK_INT(got.count, 3);
    CHECK_STR(got.v[0].prompt, "a \"cat\"");
    CHECK_INT(got.v[0].line, 3);
    CHECK_INT(got.v[1].line, 5);
    CHECK_STR(got.v[1].extra, "{\"id\":[\n1]}");
    CHECK_U64(got.v[1].seed, 7);
    CHECK_INT(got.v[2].line, 11);
    CHECK_INT(parse("p.json", " [ ] "), 0);
    CHECK_INT(got.count, 0);
    CHECK_INT(parse("p.json", "\n"), 0);
    CHECK_INT(got.count, 0);
    static const struct mistake cases[] = {
        {"[\"a\",\n{\"prompt\":\"b\",\n\n\"steps\":0}]",
         "p.json:4: element 2: steps: 0 is not between 1 and 1000"},
        {"[\"a\",\n{\"prompt\":\"b\",\n\"sampler\":\"x\"}]",
         "p.json:3: element 2: sampler: \"x\" is not one of " KN_SAMPLER_LIST},
        {"[\n{\n\"steps\":3}]", "p.json:2: element 1: prompt: missing"},
        {"[\"a\" \n\"b\"]", "p.json:2: element 1: a comma or the closing ] is missing after it"},
        {"[\"a\",]", "p.json:1: element 2: is missing, or the closing ] is"},
        {"[\"a\",", "p.json:1: element 2: is missing, or the closing ] is"},
        {"[", "p.json:1: element 1: is missing, or the closing ] is"},
        {"[\"a\"", "p.json:1: element 1: a comma or the closing ] is missing after it"},
        {"[\"a\",3]", "p.json:1: element 2: is neither an object nor a string"},
        {"[[\"a\"]]", "p.json:1: element 1: is neither an object nor a string"},
        {"[\"a\nb\"]", "p.json:1: element 1: prompt: a control character in a string"},
        {"[\"a\"]\n]", "p.json:2: something follows the JSON array"},
        {"{\"prompt\":\"a\"}",
         "p.json:1: a .json is an array of objects or of strings, [ … ]; an object a line is a .jsonl, and "
         "--input-format jsonl says so"},
        {"[{\"prompt\":\"a\",\"stesp\":1}]", "p.json:1: element 1: stesp: unknown, did you mean steps?"},
    };
    CHECK_MISTAKES("p.json", cases);
}

TEST(csv_extra_over_its_limit_is_refused) {
    static char text[KN_EXTRA_BYTES_MAX + 100];
    int n = snprintf(text, sizeof text, "prompt,x\na,");
    memset(text + n, 'y', KN_EXTRA_BYTES_MAX);
    CHECK_INT(parse("p.csv", text), KN_ELIMIT);
    CHECK_STR(err.text, "p.csv:2: extra: 4104 bytes are more than 4096");
}

TEST(csv_with_a_header_alone_has_no_task_and_is_no_failure) {
    CHECK_INT(parse("p.csv", "prompt,seed\n"), 0);
    CHECK_INT(got.count, 0);
    CHECK_INT(parse("p.csv", ""), 0);
    CHECK_INT(got.count, 0);
}

TEST(tsv_is_separated_by_tabs_and_takes_a_quote_inside_a_field) {
    CHECK_INT(parse("p.tsv", "prompt\tsteps\na, b 6\" tall\t5\n\"q\t\"\"r\"\"\"\t6\n"), 0);
    CHECK_INT(got.count, 2);
    CHECK_STR(got.v[0].prompt, "a, b 6\" tall");
    CHECK_STR(got.v[1].prompt, "q\t\"r\"");
    CHECK_INT(got.v[1].steps, 6);
}

TEST(tsv_without_quoting_may_begin_a_field_with_a_quote) {
    CHECK_INT(
        parse("p.tsv", "prompt\tid\n\"A B\" on a wall\t1\n\"never closed\t2\n\"x\"\t3\n\"\"\"y\"\" z\"\t4\n"),
        0);
    CHECK_INT(got.count, 4);
    CHECK_STR(got.v[0].prompt, "\"A B\" on a wall");
    CHECK_STR(got.v[1].prompt, "\"never closed");
    CHECK_STR(got.v[2].prompt, "x");
    CHECK_STR(got.v[3].prompt, "\"y\" z");
}

/* --- images and settings --- */

TEST(a_lines_own_images_count_their_seeds_up) {
    CHECK_INT(parse("p.txt", "a --images 3 --seed 7\nb --n_iter 2 --batch_size 2\nc\n"), 0);
    CHECK_INT(got.count, 8);
    CHECK(got.v[0].seed == 7 && got.v[1].seed == 8 && got.v[2].seed == 9);
    CHECK_STR(got.v[6].prompt, "b");
    CHECK_INT(kn_tasks_expand(&got, 2, 100, &err), 0);
    static const uint64_t want[] = {7, 8, 9, 100, 101, 102, 103, 100, 101};
    CHECK_INT(got.count, 9); /* --images 2 is for c alone: the other lines said how many */
    for (size_t i = 0; i < 9; i++) {
        CHECK_U64(got.v[i].seed, want[i]);
        CHECK_INT(got.v[i].set, KN_SET_SEED);
    }
}

TEST(images_of_the_command_line_count_up_prompt_by_prompt) {
    CHECK_INT(parse("p.txt", "a\nb --seed 50\n"), 0);
    CHECK_INT(kn_tasks_expand(&got, 3, 7, &err), 0);
    static const uint64_t want[] = {7, 8, 9, 50, 51, 52};
    CHECK_INT(got.count, 6);
    for (size_t i = 0; i < 6; i++) {
        CHECK_U64(got.v[i].seed, want[i]);
        CHECK_STR(got.v[i].prompt, i < 3 ? "a" : "b");
    }
}

/* The seeds of the prompt's images, after an expansion by two. */
static const uint64_t *seeds_of(const char *prompt) {
    static uint64_t seeds[8];
    size_t n = 0;
    for (size_t i = 0; i < got.count; i++) {
        if (strcmp(got.v[i].prompt, prompt) == 0 && n < 8) seeds[n++] = got.v[i].seed;
    }
    return seeds;
}

TEST(a_seed_for_each_prompt_stays_whatever_stands_around_it) {
    const struct kn_task each = {.set = KN_SET_SEED_EACH};
    CHECK_INT(parse("p.txt", "a\nb --seed 50\nc --images 3\na\nd --seed -1\n"), 0);
    CHECK_INT(kn_tasks_apply(&got, &each, &err), 0);
    CHECK_INT(kn_tasks_expand(&got, 2, 7, &err), 0);
    CHECK_INT(got.count, 11);
    for (size_t i = 0; i < got.count; i++) CHECK_INT(got.v[i].set, KN_SET_SEED);
    uint64_t a[4], c[3], d = seeds_of("d")[0];
    memcpy(a, seeds_of("a"), sizeof a);
    memcpy(c, seeds_of("c"), sizeof c);
    CHECK(a[1] == a[0] + 1 && a[3] == a[2] + 1 && c[1] == c[0] + 1 && c[2] == c[0] + 2);
    CHECK(a[0] != a[2] && a[0] != c[0] && a[0] != d && c[0] != d); /* equal prompts too */
    CHECK(a[0] <= UINT32_MAX && a[2] <= UINT32_MAX);
    CHECK_U64(seeds_of("b")[0], 50);

    CHECK_INT(parse("p.txt", "new\nc --images 2\na --steps 3\nd\na\n"), 0);
    CHECK_INT(kn_tasks_apply(&got, &each, &err), 0);
    CHECK_INT(kn_tasks_expand(&got, 1, 7, &err), 0);
    CHECK(seeds_of("a")[0] == a[0] && seeds_of("a")[1] == a[2] && seeds_of("c")[0] == c[0] &&
          seeds_of("d")[0] == d);

    CHECK_INT(parse("p.txt", "a"), 0);
    CHECK_INT(kn_tasks_apply(&got, &each, &err), 0);
    CHECK_INT(kn_tasks_expand(&got, 1, 8, &err), 0);
    CHECK(got.v[0].seed != a[0]); /* drawn out of another seed */
}

TEST(a_line_may_ask_for_a_seed_of_its_own) {
    static const char *const inputs[][2] = {{"p.txt", "a --seed each\nb\nc --seed=Each --images 2"},
                                            {"p.csv", "prompt,seed,images\na,each,\nb,,\nc,each,2\n"},
                                            {"p.jsonl",
                                             "{\"prompt\":\"a\",\"seed\":\"each\"}\n{\"prompt\":\"b\"}\n"
                                             "{\"prompt\":\"c\",\"seed\":\"each\",\"images\":2}"}};
    const struct kn_task settings = {.seed = 100, .set = KN_SET_SEED};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        for (int applied = 0; applied < 2;
             applied++) { /* a seed of the command line does not take its place */
            CHECK_INT(parse(inputs[i][0], inputs[i][1]), 0);
            if (applied) CHECK_INT(kn_tasks_apply(&got, &settings, &err), 0);
            CHECK_INT(kn_tasks_expand(&got, 1, 100, &err), 0);
            CHECK_INT(got.count, 4);
            CHECK_U64(got.v[1].seed, 100);
            CHECK(got.v[0].seed != 100 && got.v[2].seed != 100 && got.v[2].seed != got.v[0].seed);
            CHECK_U64(got.v[3].seed, got.v[2].seed + 1);
        }
    }
    CHECK(parse("p.jsonl", "{\"prompt\":\"a\",\"steps\":\"each\"}") != 0);
}

TEST(images_past_a_limit_leave_the_list_as_it_was) {
    CHECK_INT(parse("p.txt", "a\nb --seed 18446744073709551614\n"), 0);
    CHECK_INT(kn_tasks_expand(&got, 3, 7, &err), KN_EINVAL);
    CHECK_STR(err.text, "task 1: seed: 3 images go past 18446744073709551615");
    CHECK_INT(got.count, 2);
    CHECK_INT(kn_tasks_expand(&got, 0, 7, &err), KN_EINVAL);
    CHECK_INT(kn_tasks_expand(&got, KN_IMAGES_MAX + 1, 7, &err), KN_EINVAL);
    CHECK_INT(kn_tasks_expand(&got, 2, 7, &err), 0);
    CHECK_U64(got.v[3].seed, UINT64_MAX);
}

TEST(a_file_of_more_tasks_than_a_batch_takes_is_refused) {
    struct kn_buf b;
    kn_buf_init(&b, 1000);
    for (int i = 0; i < 10; i++) CHECK_INT(kn_buf_appends(&b, "a --images 100000\n"), 0);
    CHECK_INT(kn_buf_appends(&b, "b\n"), 0);
    CHECK_INT(parse_n("p.txt", b.data, b.len), KN_ELIMIT);
    CHECK_STR(err.text, "p.txt:11: more than 1000000 images in a batch");
    kn_buf_fini(&b);
    kn_tasks_fini(&got);
}

TEST(settings_fill_only_what_a_task_leaves_unset) {
    static char negative[] = "blurry", name[] = "tiny";
    struct kn_task settings = {.negative = negative,
                               .model = name,
                               .seed = 5,
                               .steps = 9,
                               .cfg = 2.0f,
                               .width = 64,
                               .height = 64,
                               .sampler = KN_SAMPLER_EULER,
                               .schedule = KN_SCHEDULE_KARRAS,
                               .set = KN_SET_ALL};
    CHECK_INT(parse("p.txt", "a\nb --steps 3 --negative own --model m --images 2"), 0);
    CHECK_INT(kn_tasks_apply(&got, &settings, &err), 0);
    CHECK_STR(got.v[0].negative, "blurry");
    CHECK_STR(got.v[0].model, "tiny");
    CHECK(got.v[0].steps == 9 && got.v[0].seed == 5 && got.v[0].cfg == 2.0f &&
          got.v[0].sampler == KN_SAMPLER_EULER);
    CHECK_STR(got.v[1].negative, "own");
    CHECK_STR(got.v[1].model, "m");
    CHECK_INT(got.v[1].steps, 3);
    CHECK_INT(got.v[2].set, KN_SET_ALL | KN_SET_IMAGES);
    CHECK(got.v[1].seed == 5 && got.v[2].seed == 6); /* the line's two images */
    CHECK_INT(parse("p.txt", "a\nb --sampler ddim"), 0);
    CHECK_INT(kn_tasks_apply(&got, &settings, &err), KN_EINVAL);
    CHECK_STR(err.text, "task 1: schedule: karras means nothing with the sampler DDIM");
}

/* --- all --- */

TEST(format_follows_the_name_or_must_be_said) {
    enum kn_input_format f;
    CHECK_INT(kn_input_format_parse("JSONL", &f, &err), 0);
    CHECK_INT(f, KN_INPUT_JSONL);
    CHECK_INT(kn_input_format_parse("xml", &f, &err), KN_EINVAL);
    CHECK_INT(parse("dir.txt/prompts", "a"), KN_EINVAL);
    CHECK_STR(err.text,
              "dir.txt/prompts: what format is this? --input-format txt, jsonl, json, csv or tsv says it");
    CHECK_INT(parse("P.TXT", "a"), 0);
    CHECK_INT(kn_prompts_parse("x", KN_INPUT_TXT, false, "b", 1, &got, &err), 0);
    CHECK_INT(got.count, 2); /* appends */
    CHECK_INT(kn_prompts_read("-", KN_INPUT_AUTO, false, &got, &err), KN_EINVAL);
    CHECK_INT(kn_prompts_read("/nowhere/p.txt", KN_INPUT_AUTO, false, &got, &err), KN_ENOENT);
}

TEST(a_failure_keeps_what_was_there_before) {
    CHECK_INT(parse("p.txt", "a\nb"), 0);
    CHECK_INT(kn_prompts_parse("q.txt", KN_INPUT_AUTO, false, "c\nd --steps 0", 13, &got, &err), KN_EINVAL);
    CHECK_INT(got.count, 2);
    CHECK_STR(got.v[1].prompt, "b");
    CHECK_INT(kn_tasks_add(&got, "e", &err), 0);
    CHECK_INT(kn_tasks_add(&got, "\xff", &err), KN_EINVAL);
    CHECK_INT(got.count, 3);
    kn_tasks_fini(&got);
    CHECK_INT(got.count, 0);
}

TEST(a_file_is_read_from_disk_under_its_name) {
    char path[] = "/tmp/kn-prompts-XXXXXX.csv";
    int fd = mkstemps(path, 4);
    CHECK(fd >= 0);
    CHECK(write(fd, "prompt\na\n", 9) == 9);
    close(fd);
    kn_tasks_fini(&got);
    CHECK_INT(kn_prompts_read(path, KN_INPUT_AUTO, false, &got, &err), 0);
    CHECK_INT(got.count, 1);
    unlink(path);
    kn_tasks_fini(&got);
}

TEST(an_endless_name_does_not_push_the_message_out) {
    static char name[4000];
    memset(name, 'n', sizeof name);
    memcpy(name + sizeof name - 5, ".txt", 5);
    CHECK_INT(parse(name, "a --steps 0"), KN_EINVAL);
    CHECK(strstr(err.text, "n.txt:1: steps: 0 is not between 1 and 1000") != NULL);
}

/* Cut anywhere, an input is read or refused with a line, and never half appended. */
TEST(every_truncation_is_read_or_refused_with_a_line) {
    static const struct {
        const char *name, *text;
        size_t len; /* 0: up to the NUL */
    } inputs[] = {
        {"t.txt",
         "\xff\xfe"
         "a\0\r\0\n\0\x3d\xd8\0\xde"
         "b\0",
         14},
        {"t.txt",
         "a cat --negative \"b \\\" c\" --sampler 'Euler a' --steps=30 --seed 5\n--prompt \xc3\xa4 d "
         "--images 2\n",
         0},
        {"t.txt",
         "a\nNegative prompt: b\nSteps: 5, Sampler: Euler a, Template: \"x\\n, y\", Civitai metadata: {\"a\":[1,2]}\n"
         "c\nSteps: 9, Seed: 1, Size: 64x64",
         0},
        {"t.jsonl", "{\"prompt\":\"a \\u00e4\\ud83d\\ude00\",\"cfg\":1.5e0,\"extra\":{\"x\":[1,\"}\"]}}\n",
         0},
        {"t.jsonl", "{\"x\":[1,{\"y\":\"\\u00e4\"}],\"prompt\":\"a\",\"z\":-1.5e3,\"extra\":{\"w\":1}}\n", 0},
        {"t.json", " [\n\"a\", {\"prompt\":\"b\",\n\"x\":null},\n\"c\\n\"]\n", 0},
        {"t.csv", "sep=;\r\nprompt;cfg;;id\r\n\"a;\";7,5;;1\r\n;;;\r\n", 0},
        {"t.csv", "\xef\xbb\xbfid,prompt,seed\r\n1,\"a \"\"b\"\"\r\nc\",12\r\n2,d,\r\n", 0},
        {"t.tsv", "id\tprompt\tseed\n1\t\"a \"\"b\"\"\nc\"\t12\n2\td\t\n", 0},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        size_t len = inputs[i].len ? inputs[i].len : strlen(inputs[i].text), refused = 0;
        for (size_t n = 0; n <= len; n++) {
            char *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read past the end */
            memcpy(exact, inputs[i].text, n);
            if (parse_n(inputs[i].name, exact, n) != 0) {
                refused++;
                CHECK_INT(got.count, 0);
                char head[32];
                snprintf(head, sizeof head, "%s:", inputs[i].name);
                CHECK(strncmp(err.text, head, strlen(head)) == 0);
                CHECK(err.text[strlen(head)] >= '1' && err.text[strlen(head)] <= '9');
            }
            free(exact);
        }
        CHECK_MSG(refused > 0 && refused < len, "%s: %zu of %zu", inputs[i].name, refused, len);
    }
    kn_tasks_fini(&got);
}
