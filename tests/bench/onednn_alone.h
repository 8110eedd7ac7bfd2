/* oneDNN's speed by itself, with its own OpenMP threads: the ceiling that the engine is compared with.
 */
#ifndef KILN_TESTS_BENCH_ONEDNN_ALONE_H
#define KILN_TESTS_BENCH_ONEDNN_ALONE_H

/* Seconds of the fastest of several runs of a convolution (kernel × kernel, padding kernel / 2, f32, channels
 * last); negative: oneDNN failed. */
double onednn_alone(int in, int out, int h, int w, int kernel, int threads);

#endif
