// Lane groups that make rows together: SPLIT of them a team.
override SPLIT: u32 = 1u;

struct Team {
    // This lane's place in its team, and the lanes of a team.
    member: u32,
    members: u32,
    // The team's place among those of the workgroup, and the subgroups that it has.
    number: u32,
    teams: u32,
    split: u32,
}

fn team_of(lane: Lane) -> Team {
    // Subgroups may be larger, and so fewer, than the host expected.
    let split = min(SPLIT, lane.groups);
    return Team(
        lane.index + lane.group % split * lane.count,
        lane.count * split,
        lane.group / split,
        lane.groups / split,
        split,
    );
}
