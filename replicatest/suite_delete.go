package replicatest

import (
	"maps"
	"slices"
	"testing"

	"example.com/litestream"
)

func testDelete(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{}
	for i, pos := range k.positions {
		want[pos] = body(i, 10*i)
		s.mustWrite(t, k, pos, want[pos])
	}
	for i, pos := range k.positions {
		if err := k.remove(t.Context(), s.client, pos); err != nil {
			t.Errorf("delete %s: %v", describe(pos), err)
		}
		delete(want, pos)
		s.mustHold(t, k, want, pos.Generation)
		if i == 1 { // what was deleted can be written again
			want[pos] = []byte("again")
			s.mustWrite(t, k, pos, want[pos])
			s.mustHold(t, k, want)
		}
	}
}

func testDeleteMissing(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{}
	missing := func(what string, pos litestream.Pos) {
		t.Helper()
		if err := k.remove(t.Context(), s.client, pos); err != nil {
			t.Errorf("delete what is not there, %s: %v", what, err)
		}
		s.mustHold(t, k, want, gen1, gen2)
	}
	missing("from an empty storage", k.at(1))
	want[k.at(1)] = []byte("one")
	s.mustWrite(t, k, k.at(1), want[k.at(1)])
	missing("beside another", k.at(2))
	missing("with the highest number", k.highest)
	missing("from another generation", at(gen2, k.at(1).Index, k.at(1).Offset))
	delete(want, k.at(1))
	missing("for the first time", k.at(1))
	missing("for the second time", k.at(1))
}

func testDeleteCancelled(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{k.at(1): []byte("one")}
	s.mustWrite(t, k, k.at(1), want[k.at(1)])
	for what, ended := range endedContexts(t) {
		mustMatchContext(t, "delete", what, ended, k.remove(ended, s.client, k.at(1)))
		mustMatchContext(t, "DeleteGeneration", what, ended, s.client.DeleteGeneration(ended, gen1))
	}
	s.mustHoldWhole(t, k, k.at(1), want[k.at(1)])
}

func testDeleteWALSegments(t *testing.T, s *storage) {
	k := segments
	want := map[litestream.Pos][]byte{}
	for i, pos := range k.positions {
		want[pos] = body(i, 10*i)
		s.mustWrite(t, k, pos, want[pos])
	}
	for _, none := range [][]litestream.Pos{nil, {}} {
		if err := s.client.DeleteWALSegments(t.Context(), none); err != nil {
			t.Errorf("delete no segments: %v", err)
		}
	}
	s.mustHold(t, k, want)

	// Out of order, of two generations, some missing, one twice.
	a := []litestream.Pos{
		at(gen1, 5, 5), k.positions[7], k.positions[2], at(gen3, 99, 0), k.positions[0], k.positions[2], at("00000000deadbeef", 0, 0),
	}
	passed := slices.Clone(a)
	if err := s.client.DeleteWALSegments(t.Context(), passed); err != nil {
		t.Errorf("delete segments, some missing, one twice: %v", err)
	}
	if !slices.Equal(a, passed) {
		t.Errorf("the caller's slice was changed to %v", passed)
	}
	maps.DeleteFunc(want, func(pos litestream.Pos, _ []byte) bool { return slices.Contains(a, pos) })
	s.mustHold(t, k, want, gen1, gen2, gen3)

	t.Run("Many", func(t *testing.T) {
		many := s.mustWriteMany(t, k, sizes(1100, 50))
		last := k.at(3)
		delete(many, last)
		if err := s.client.DeleteWALSegments(t.Context(), slices.Collect(maps.Keys(many))); err != nil {
			t.Errorf("delete %d segments: %v", len(many), err)
		}
		maps.DeleteFunc(want, func(pos litestream.Pos, _ []byte) bool { return many[pos] != nil })
		want[last] = []byte("object 3")
		s.mustHold(t, k, want)
	})
}

func testDeleteGeneration(t *testing.T, s *storage) {
	holds := func(names ...string) {
		t.Helper()
		for _, k := range []*kind{snapshots, segments} {
			want := map[litestream.Pos][]byte{}
			for i, pos := range k.positions {
				if slices.Contains(names, pos.Generation) {
					want[pos] = body(i, 10*i)
				}
			}
			s.mustHold(t, k, want, gen1, gen2, gen3)
		}
		for i, c := range s.clients() {
			got, err := c.Generations(t.Context())
			if err != nil {
				t.Errorf("client %d: generations: %v", i+1, err)
			}
			if slices.Sort(got); !slices.Equal(got, names) {
				t.Errorf("client %d: generations %q, want %q", i+1, got, names)
			}
		}
	}
	fill := func(names ...string) {
		t.Helper()
		for _, k := range []*kind{snapshots, segments} {
			for i, pos := range k.positions {
				if slices.Contains(names, pos.Generation) {
					s.mustWrite(t, k, pos, body(i, 10*i))
				}
			}
		}
	}
	remove := func(name string) {
		t.Helper()
		if err := s.client.DeleteGeneration(t.Context(), name); err != nil {
			t.Errorf("delete generation %s: %v", name, err)
		}
	}
	remove(gen1) // from an empty storage
	fill(gen1, gen2, gen3)
	remove("00000000deadbeef")
	holds(gen2, gen1, gen3)
	remove(gen1)
	holds(gen2, gen3)
	remove(gen1)
	holds(gen2, gen3)
	fill(gen1)
	holds(gen2, gen1, gen3)
	remove(gen3)
	remove(gen2)
	remove(gen1)
	holds()

	// Of what was written again only that is there.
	s.mustWrite(t, segments, at(gen1, 1, 0), []byte("again"))
	s.mustHold(t, segments, map[litestream.Pos][]byte{at(gen1, 1, 0): []byte("again")})
	s.mustHold(t, snapshots, nil, gen1)
}
