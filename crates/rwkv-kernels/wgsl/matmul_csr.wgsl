// Y = X Wᵀ for many tokens and a W of compressed sparse rows, expanded tile by tile.
#import csr
#import tiles
#import tiles/rows

const STEP: u32 = 16u;

// Entries of this thread's row that came in earlier steps.
var<private> passed: u32;

// Where a row's next entries are is known only from those before.
fn fetch_w(first_row: u32, first_column: u32, thread: u32) {}

fn store_w(first_row: u32, first_column: u32, thread: u32) {
    for (var column = 0u; column < STEP; column++) {
        put_w(column, thread, 0.0);
    }
    if first_row + thread >= params.rows {
        return;
    }
    let entries = entries_of(first_row + thread);
    while passed < entries.count {
        let entry = entries.unit * 8u + passed;
        let column = entry_column(entry) - first_column;
        if column >= STEP {
            break;
        }
        put_w(column, thread, entry_value(entry));
        passed++;
    }
}
