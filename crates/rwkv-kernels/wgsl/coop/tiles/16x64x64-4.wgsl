// 42 µs for 16 × 4096×16384 in eight slices (H200, F16 by columns, 2026-11): a core has four workgroups of it at a time.
// 16 tokens × 64 rows by 64 columns; a subgroup has 16 × 16 of it.
#define SIDE 16
#define MATRIX coop_mat16x16
#define TOKENS 16
#define ROWS 64
#define DEPTH 64
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 1
#define WIDE 1
#define STEPS 4
// Elements of a matrix that a lane has.
#define EACH 8
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 2
#define LOADS_4 8
#define LOADS_16 2
#define LOADS_32 1
