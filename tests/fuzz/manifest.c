/* A line of manifest.jsonl. What must hold whatever it says: a failure has words, a success is within its
 * ranges and says the same when it is read again, and a line that was cut is never read as a whole one. */
#include "cli/folder/manifest.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

int kn_fuzz(const uint8_t *data, size_t size) {
    struct manifest_line l, again;
    struct kn_err err = {0};
    int rc = manifest_read((const char *)data, size, &l, &err);
    if (rc) {
        FUZZ_CHECK(rc == KN_EPARSE || rc == KN_EINVAL);
        FUZZ_CHECK(err.text[0] != '\0');
        return 0;
    }
    FUZZ_CHECK(l.index < KN_TASKS_PER_BATCH_MAX);
    FUZZ_CHECK(l.width >= KN_SIZE_MIN && l.width <= KN_SIZE_MAX);
    FUZZ_CHECK(l.height >= KN_SIZE_MIN && l.height <= KN_SIZE_MAX);
    FUZZ_CHECK(l.status == KN_RESULT_DONE || l.status == KN_RESULT_FAILED || l.status == KN_RESULT_CANCELLED);
    FUZZ_CHECK(manifest_read((const char *)data, size, &again, &err) == KN_OK);
    FUZZ_CHECK(memcmp(l.key_computed, again.key_computed, sizeof l.key_computed) == 0);
    free(l.file);
    free(again.file);
    size_t end = size; /* the object's last brace */
    while (end > 0 && data[end - 1] != '}') end--;
    FUZZ_CHECK(end > 0 && manifest_read((const char *)data, end - 1, &again, &err) != KN_OK);
    return 0;
}
