/* Strict JSON: the same text means the same with every version of json-c. */
#include <string.h>

#include "base/json.h"
#include "tests/unit/check.h"

static json_object *parse(const char *text, size_t *used, enum json_tokener_error *why) {
    return kn_json_parse(text, strlen(text), 8, used, why);
}

TEST(characters_beyond_ascii_are_read_in_keys_and_in_values) {
    enum json_tokener_error why;
    size_t used;
    json_object *o = parse("{\"Größe\": \"猫 😀 é\\n\", \"plain\": \"ü\\u00fc\"}", &used, &why), *v;
    CHECK_INT(why, json_tokener_success);
    CHECK(json_object_object_get_ex(o, "Größe", &v));
    CHECK_STR(json_object_get_string(v), "猫 😀 é\n");
    CHECK(json_object_object_get_ex(o, "plain", &v));
    CHECK_STR(json_object_get_string(v), "üü");
    json_object_put(o);
}

TEST(the_end_is_told_in_bytes_of_the_text) {
    const char *text = "{\"ä\": \"😀猫\"}ß";
    size_t used;
    enum json_tokener_error why;
    json_object *o = parse(text, &used, &why);
    CHECK(o);
    CHECK_INT(used, strlen("{\"ä\": \"😀猫\"}"));
    json_object_put(o);
    CHECK(!parse("{\"ä\": ü}", &used, &why));
    CHECK_INT(used, strlen("{\"ä\": "));
}

TEST(what_is_not_json_is_refused_with_characters_beyond_ascii_too) {
    static const char *const wrong[] = {"{\"ä\": 1,}", "\"ä", "ä", "{\"ä\" 1}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        size_t used;
        enum json_tokener_error why;
        json_object *o = parse(wrong[i], &used, &why);
        CHECK_MSG(!o && why != json_tokener_success, "accepted: %s", wrong[i]);
        json_object_put(o);
    }
}

TEST(what_is_not_utf8_is_refused_where_it_stands) {
    size_t used;
    enum json_tokener_error why;
    CHECK(!parse("{\"a\xff\": 1}", &used, &why));
    CHECK_INT(why, json_tokener_error_parse_utf8_string);
    CHECK_INT(used, 3);
    CHECK(!parse("\"\xed\xa0\x80\"", &used, &why)); /* half a surrogate pair */
}
