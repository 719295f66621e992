// The ragged batch of a step: spans of tokens, each with the state of one slot.
struct Token {
    // What the embedding looks up.
    id: u32,
    // The span it belongs to.
    span: u32,
}

struct Span {
    // Its first row in the activations, and how many it has.
    start: u32,
    length: u32,
    // Its state.
    slot: u32,
    padding: u32,
}

// The slots that the bound state buffer holds: all of a large state does not fit one binding.
struct Page {
    first_slot: u32,
    slots: u32,
    padding: vec2<u32>,
}

fn in_page(page: Page, slot: u32) -> bool {
    return slot >= page.first_slot && slot - page.first_slot < page.slots;
}
