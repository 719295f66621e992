// Twice the subgroups, which wait side by side. In slices only: workgroup memory of 48 KiB is full.
// 16 tokens × 128 rows by 128 columns; a subgroup has 16 × 16 of it.
#define SIDE 16
#define MATRIX coop_mat16x16
#define TOKENS 16
#define ROWS 128
#define DEPTH 128
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 1
#define WIDE 1
#define STEPS 8
// Elements of a matrix that a lane has.
#define EACH 8
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 2
#define LOADS_4 16
#define LOADS_16 4
#define LOADS_32 2
