// Where the items of one thread begin among those of all, and how many there are.
struct Prefix {
    first: u32,
    total: u32,
}
