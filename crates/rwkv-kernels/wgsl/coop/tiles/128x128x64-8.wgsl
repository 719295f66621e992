// 268 TFLOP/s at 2048 × 4096×4096 and 250 at 512 (H200, F16, 2026-11); 187 at 512 in Q8_0, 211 in Q4_K.
// 128 tokens × 128 rows by 64 columns; a subgroup has 64 × 32 of it.
#define SIDE 16
#define MATRIX coop_mat16x16
#define TOKENS 128
#define ROWS 128
#define DEPTH 64
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 4
#define WIDE 2
#define STEPS 4
// Elements of a matrix that a lane has.
#define EACH 8
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 8
#define LOADS_4 8
#define LOADS_16 2
#define LOADS_32 1
