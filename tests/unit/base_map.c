/* The hash map, against a plain list that does the same. */
#include "base/map.h"
#include "tests/unit/check.h"

static int values[5000];

TEST(map_gives_back_what_was_put) {
    struct kn_map *m = kn_map_create(100);
    CHECK(m != NULL);
    CHECK(kn_map_get(m, "a", 1) == NULL);
    CHECK_INT(kn_map_put(m, "a", 1, &values[1]), 0);
    CHECK_INT(kn_map_put(m, "ab", 2, &values[2]), 0);
    CHECK_INT(kn_map_put(m, "", 0, &values[3]), 0);
    CHECK_INT(kn_map_put(m, "a", 1, &values[4]), KN_EEXIST);
    CHECK(kn_map_get(m, "a", 1) == &values[1]);
    CHECK(kn_map_get(m, "ab", 2) == &values[2]);
    CHECK(kn_map_get(m, "", 0) == &values[3]);
    CHECK(kn_map_get(m, "b", 1) == NULL);
    CHECK_INT(kn_map_count(m), 3);
    CHECK(kn_map_remove(m, "a", 1) == &values[1]);
    CHECK(kn_map_remove(m, "a", 1) == NULL);
    CHECK_INT(kn_map_count(m), 2);
    kn_map_destroy(m);
    kn_map_destroy(NULL);
}

TEST(map_refuses_more_than_its_maximum) {
    struct kn_map *m = kn_map_create(3);
    CHECK_INT(kn_map_put(m, "1", 1, values), 0);
    CHECK_INT(kn_map_put(m, "2", 1, values), 0);
    CHECK_INT(kn_map_put(m, "3", 1, values), 0);
    CHECK_INT(kn_map_put(m, "4", 1, values), KN_ELIMIT);
    CHECK(kn_map_remove(m, "2", 1) != NULL);
    CHECK_INT(kn_map_put(m, "4", 1, values), 0);
    kn_map_destroy(m);
}

TEST(map_iterates_in_the_order_of_inserts) {
    struct kn_map *m = kn_map_create(5000);
    for (int i = 0; i < 1000; i++) CHECK_INT(kn_map_put(m, &i, sizeof i, &values[i]), 0);
    for (int i = 0; i < 1000; i += 3) CHECK(kn_map_remove(m, &i, sizeof i) == &values[i]);
    for (int i = 0; i < 1000; i += 6)
        CHECK_INT(kn_map_put(m, &i, sizeof i, &values[i]), 0); /* now the last ones */
    size_t pos = 0;
    for (int i = 0; i < 1000; i++) {
        if (i % 3) CHECK(kn_map_next(m, &pos) == &values[i]);
    }
    for (int i = 0; i < 1000; i += 6) CHECK(kn_map_next(m, &pos) == &values[i]);
    CHECK(kn_map_next(m, &pos) == NULL);
    CHECK(kn_map_next(m, &pos) == NULL);
    kn_map_destroy(m);
}

TEST(map_does_what_a_list_does_over_a_long_random_history) {
    enum { KEYS = 700 };
    static char there[KEYS];
    memset(there, 0, sizeof there);
    struct kn_map *m = kn_map_create(KEYS);
    uint32_t x = 12345;
    size_t count = 0;
    for (int step = 0; step < 200000; step++) {
        x = x * 1664525u + 1013904223u;
        uint16_t key = (uint16_t)((x >> 12) % KEYS);
        if (x >> 31) {
            CHECK_INT(kn_map_put(m, &key, sizeof key, &values[key]), there[key] ? KN_EEXIST : 0);
            count += !there[key];
            there[key] = 1;
        } else {
            CHECK(kn_map_remove(m, &key, sizeof key) == (there[key] ? &values[key] : NULL));
            count -= (size_t)there[key];
            there[key] = 0;
        }
        CHECK_INT(kn_map_count(m), count);
        if (step % 4096 == 0) {
            for (uint16_t k = 0; k < KEYS; k++)
                CHECK(kn_map_get(m, &k, sizeof k) == (there[k] ? &values[k] : NULL));
        }
    }
    kn_map_destroy(m);
}

TEST(map_that_is_filled_and_emptied_again_and_again_stays_right) {
    struct kn_map *m = kn_map_create(10);
    for (int i = 0; i < 100000; i++) { /* tombstones must neither fill the table nor end a search early */
        CHECK_INT(kn_map_put(m, &i, sizeof i, values), 0);
        if (i >= 5) {
            int old = i - 5;
            CHECK(kn_map_remove(m, &old, sizeof old) == values);
        }
    }
    CHECK_INT(kn_map_count(m), 5);
    kn_map_destroy(m);
}
