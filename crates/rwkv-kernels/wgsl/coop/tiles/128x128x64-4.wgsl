// 289 TFLOP/s at 2048 × 4096×4096 (238 µs; with eight subgroups 256), for many tokens (H200, F16, 2026-11): of what lies in
// workgroup memory a subgroup of four reads two thirds of what one of eight does.
// 128 tokens × 128 rows by 64 columns; a subgroup has 64 × 64 of it.
#define SIDE 16
#define MATRIX coop_mat16x16
#define TOKENS 128
#define ROWS 128
#define DEPTH 64
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 4
#define WIDE 4
#define STEPS 4
// Elements of a matrix that a lane has.
#define EACH 8
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 16
#define LOADS_4 16
#define LOADS_16 4
#define LOADS_32 2
// Only four subgroups of a core are at work.
#define FEW 1
