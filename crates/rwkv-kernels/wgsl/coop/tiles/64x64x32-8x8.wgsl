// For adapters whose matrices are 8 × 8, as Metal has them.
// 64 tokens × 64 rows by 32 columns; a subgroup has 32 × 32 of it.
#define SIDE 8
#define MATRIX coop_mat8x8
#define TOKENS 64
#define ROWS 64
#define DEPTH 32
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 4
#define WIDE 4
#define STEPS 4
// Elements of a matrix that a lane has.
#define EACH 2
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 4
#define LOADS_4 4
#define LOADS_16 1
#define LOADS_32 1
#define SCALAR 1
