// A workgroup's way through its span, STAGE tokens at a time. Whoever imports this imports what brings them (`load_ahead`,
// `prepare`, `stage`; `load_values`, `stage_values`) and takes the state past them (`advance`).

fn walk(at: Invocation) {
    let place = place_of(at);
    if place.start == place.end {
        return;
    }
    var ahead = load_ahead(place, place.start);
    var ahead_values = load_values(place, place.start);
    var s = read_state(place);
    var first = place.start;
    loop {
        prepare(place, first, &ahead);
        workgroupBarrier();
        stage(place, ahead);
        stage_values(place, first, ahead_values);
        // Without a condition, past the end too: nothing then has to wait for what is on its way but its use.
        let next = first + STAGE;
        ahead = load_ahead(place, next);
        ahead_values = load_values(place, next);
        workgroupBarrier();
        advance(place, first, &s);
        if next >= place.end {
            break;
        }
        first = next;
    }
    write_state(place, s);
}
