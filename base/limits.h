/* Every maximum that a peer or a file can reach, in one place. Overflow is KN_ELIMIT and names the limit. */
#ifndef KN_BASE_LIMITS_H
#define KN_BASE_LIMITS_H

/* text */
#define KN_PROMPT_BYTES_MAX 8192 /* prompt, negative prompt: each */
#define KN_EXTRA_BYTES_MAX 4096  /* JSON object of a task's unknown columns */
#define KN_NAME_MAX 64           /* worker, model, sampler …: bytes without the terminating 0 */
#define KN_HOST_MAX 128
#define KN_REASON_MAX 512         /* why a task failed */
#define KN_ATTEMPT_REASON_MAX 200 /* the same of one attempt among several */
#define KN_WAIT_TEXT_MAX 1024     /* why something does not go on, and what to do */
#define KN_ENDPOINT_MAX 256       /* tcp://… or ipc://…; an ipc path stays below 108 */
#define KN_BACKEND_MAX 48         /* cpu-avx2-3fa1c2 */
#define KN_DEVICE_MAX 128
#define KN_DEVICE_BYTES_MAX (1ull << 50) /* readings of a device: memory, temperature, power, clocks */
#define KN_DEVICE_C_MAX 1000
#define KN_DEVICE_MW_MAX 1000000000
#define KN_DEVICE_MHZ_MAX 1000000

/* batches */
#define KN_TASKS_PER_BATCH_MAX 1000000
#define KN_TASKS_PER_CHUNK_MAX 1000
#define KN_CHUNK_BYTES_MAX (32u << 20) /* one chunk, unpacked */
#define KN_CHUNK_PARTS_MAX 16          /* messages that a chunk over a frame travels in */
#define KN_MODELS_PER_BATCH_MAX 64
#define KN_ATTEMPTS_PER_TASK_MAX 8 /* that are remembered with their reasons: the newest */
#define KN_ATTEMPTS_PER_REPLY_MAX 256
#define KN_GROUPS_PER_BATCH_MAX 4096  /* distinct (model, size, sampler, schedule, steps) */
#define KN_BATCHES_MAX 10000          /* on a farm at once, finished ones too */
#define KN_INPUT_BYTES_MAX (1u << 30) /* a prompt file */

/* files */
#define KN_FILE_BYTES_MAX (1ull << 40) /* the largest that is opened at all: one file of weights */

/* the farm */
#define KN_WORKERS_MAX 4096
#define KN_MODELS_PER_WORKER_MAX 64
#define KN_KNOWN_MODELS_MAX 256 /* that were announced once and are remembered */
#define KN_SHARD_TASKS_MAX 256
#define KN_SHARDS_PER_WORKER_MAX 8
#define KN_IMAGE_BYTES_MAX (64u << 20) /* one encoded picture */
#define KN_FRAME_BYTES_MAX (4u << 20)  /* one control message */
/* One part of a chunk, as compressed: all but the last are of this size. The rest of the frame is for what stands beside it. */
#define KN_CHUNK_PART_BYTES (KN_FRAME_BYTES_MAX - (64u << 10))
#define KN_RESULTS_PER_REPLY_MAX 1000
#define KN_KEYS_MAX 16384 /* of nodes and people, on a farm's list */
#define KN_TOKENS_MAX 1024
#define KN_TOKEN_USES_MAX 1000000
#define KN_TOKEN_TTL_MS_MAX (10 * 365 * 24 * 3600000ull)

/* ranges of a task's settings */
#define KN_STEPS_MIN 1
#define KN_STEPS_MAX 1000
#define KN_SIZE_MIN 16
#define KN_SIZE_MAX 4096
#define KN_SIZE_MULTIPLE 8
#define KN_CFG_MIN 0.0
#define KN_CFG_MAX 100.0
#define KN_IMAGES_MAX 100000 /* --images */

#endif
