// Twice the subgroups, and two steps on their way.
// 32 tokens × 64 rows by 128 columns; a subgroup has 16 × 16 of it.
#define SIDE 16
#define MATRIX coop_mat16x16
#define TOKENS 32
#define ROWS 64
#define DEPTH 128
// Matrices of a subgroup, of tokens and of rows, and of a step's columns.
#define HIGH 1
#define WIDE 1
#define STEPS 8
// Elements of a matrix that a lane has.
#define EACH 8
// Loads of a thread for a step: of x, of W in F16, and in units of 16 and 32 elements.
#define X_LOADS 4
#define LOADS_4 8
#define LOADS_16 2
#define LOADS_32 1
#define TWICE 1
