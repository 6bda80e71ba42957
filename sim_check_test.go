package litestream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"example.com/litestream/internal/fakeapp"
	"example.com/litestream/internal/walcheck"
)

// simGeneration is what the oracle knows of a generation. The application
// numbers its WALs, and counts one that a power loss cut twice: before and
// after.
type simGeneration struct {
	numbers map[int][]int // by WAL index: the application's numbers
}

// simMoment is a position that a replica had at a time.
type simMoment struct {
	at  time.Time
	pos Pos
}

// simOracle knows what is to be expected.
type simOracle struct {
	s             *sim
	generations   map[string]*simGeneration
	last          Pos // checked
	compared      Pos // up to where segments of the shadow WAL were compared
	truncatesSeen int
	requested     bool
	openFaults    int // sim.faults when the library began to open
	openEpoch     int
	moments       [][]simMoment // by replica, of the current generation
	steps         int
}

func newSimOracle(s *sim) simOracle {
	return simOracle{s: s, generations: make(map[string]*simGeneration), moments: make([][]simMoment, 2)}
}

func (o *simOracle) generation(name string) *simGeneration {
	g := o.generations[name]
	if g == nil {
		g = &simGeneration{numbers: make(map[int][]int)}
		o.generations[name] = g
	}
	return g
}

// number returns the application's number of the WAL at a cursor.
func (o *simOracle) number(cur walCursor) (int, bool) {
	app := o.s.host.app
	if cur.header.isZero() {
		return app.Index(), true
	}
	for n := app.Index(); n >= 0; n-- {
		if bytes.Equal(app.Header(n), cur.header.raw[:]) {
			return n, true
		}
	}
	return 0, false
}

// place notes which WAL of the application an index is.
func (o *simOracle) place(c *capturer) (number int, err error) {
	number, ok := o.number(c.cursor)
	if !ok {
		return 0, fmt.Errorf("%s: the application wrote no such header", c.pos)
	}
	g := o.generation(c.pos.Generation)
	numbers := g.numbers[c.pos.Index]
	if slices.Contains(numbers, number) {
		return number, nil
	}
	first := number // of those that stand for the same WAL
	for first > 0 && bytes.Equal(o.s.host.app.Header(first-1), c.cursor.header.raw[:]) {
		first--
	}
	if before := g.numbers[c.pos.Index-1]; len(numbers) == 0 && len(before) > 0 && before[len(before)-1] != first-1 {
		return 0, fmt.Errorf("%s is wal %d, and the index before it wal %d", c.pos, number, before)
	}
	g.numbers[c.pos.Index] = append(numbers, number)
	return number, nil
}

// prepareOpen decides whether a new generation may begin: not if the WAL is
// the one that was left.
func (o *simOracle) prepareOpen() {
	s := o.s
	o.openFaults, o.openEpoch = s.faults, s.host.epoch
	s.calm = true
	defer func() { s.calm = false }()
	shadow := newShadowWAL(s.mem, metaDir(s.path+MetaDirSuffix))
	name, err := shadow.readGeneration()
	if err != nil || name == "" || s.lossy || s.excused {
		s.excused = true
		return
	}
	indexes, err := shadow.load(name)
	if err != nil || len(indexes) == 0 {
		s.excused = true
		return
	}
	cur, err := shadow.readIndex(name, indexes[len(indexes)-1])
	if err != nil {
		s.failf("nothing was lost, but the shadow wal cannot be read: %w", err)
		return
	}
	f, err := s.mem.OpenFile(s.path+"-wal", os.O_RDONLY, 0)
	if err != nil {
		s.fail(err)
		return
	}
	var header [WALHeaderSize]byte
	if _, err := f.ReadAt(header[:], 0); err != nil || header != cur.header.raw {
		s.excused = true
	}
}

// resumed is called when a position was resumed, or not.
func (o *simOracle) resumed(c *capturer) {
	o.last, o.compared = Pos{}, c.pos
	if c.pos.IsZero() {
		// What cannot be read of the shadow WAL is given up, and the WAL may
		// restart before the pin.
		s := o.s
		s.excused = s.excused || s.faults > o.openFaults || s.host.epoch != o.openEpoch
		if !s.excused && !s.dead {
			s.failf("not resumed: %s", c.reason)
		}
		return
	}
	o.s.count.resumed++
	_, err := o.place(c)
	o.s.fail(err)
}

// captured is called after each capture that found something.
func (o *simOracle) captured(c *capturer, got captured) {
	s := o.s
	s.count.restarts += got.restarts
	s.count.segments += got.segments
	if s.host.seenEpoch < 0 && s.host.epoch != o.openEpoch {
		s.excused = true // the first pin may be of a WAL that is not captured, but backfilled
	}
	if got.generation != "" {
		s.count.generations++
		r := got.generation
		switch {
		case strings.Contains(r, "read replica's segment"):
		case strings.Contains(r, "it holds what this database did not write"), strings.Contains(r, "shadow wal is damaged"),
			strings.Contains(r, "is no longer in the shadow wal"):
			if !s.lossy {
				s.failf("new generation, though nothing was lost: %s", r)
			}
		case r == "requested" && s.requested:
		case !s.excused:
			s.failf("new generation for no reason: %s", r)
		}
		s.excused, s.lossy, s.requested = false, false, false
		o.compared = Pos{Generation: c.pos.Generation}
		o.moments = make([][]simMoment, 2)
	}
	o.truncatesSeen = s.host.truncates
	number, err := o.place(c)
	s.fail(err)
	if number == s.host.app.Index() {
		s.host.seenEpoch, s.host.seenFrames = s.host.epoch, int(c.cursor.frames())
	}
}

// committed returns the last WAL with a commit, and where that ends.
func (o *simOracle) committed() (p [2]int) {
	app := o.s.host.app
	return [2]int{app.Index(), len(app.Committed(app.Index()))}
}

// checkComplete fails unless everything before a place was captured.
func (o *simOracle) checkComplete(want [2]int) {
	c := o.s.db.mu.capturer
	number, _ := o.number(c.cursor)
	switch {
	case number > want[0], number == want[0] && int(c.pos.Offset) >= want[1]:
	case number == want[0]-1 && want[1] == 0: // nothing was committed to the newest
	default:
		o.s.failf("captured up to %d of wal %d, committed were %d of wal %d", c.pos.Offset, number, want[1], want[0])
	}
}

// check verifies the invariants of the capture, after every step.
func (o *simOracle) check() {
	s := o.s
	s.fail(s.host.failed)
	s.fail(s.host.broken)
	if o.steps++; o.steps%150 == 0 {
		s.checkAll()
	}
	s.host.app.Forget(s.host.app.Index() - 40)
	if s.db == nil || s.db.mu.session == nil {
		return
	}
	c := s.db.mu.capturer
	if c.pos.IsZero() || c.pos == o.last {
		return
	}
	if o.last.Generation == c.pos.Generation && o.last.compare(c.pos) > 0 {
		s.failf("the position went from %s to %s", o.last, c.pos)
	}
	o.last = c.pos
	s.fail(o.checkCursor(c))
	s.fail(o.checkShadow(c))
}

// checkCursor verifies I2 and I3.
func (o *simOracle) checkCursor(c *capturer) error {
	number, err := o.place(c)
	if err != nil {
		return err
	}
	if c.pos.Offset != c.cursor.offset {
		return fmt.Errorf("the position is %s, the cursor at %d", c.pos, c.cursor.offset)
	}
	app := o.s.host.app
	if _, ok := app.StateAt(number, c.pos.Offset); !ok {
		return fmt.Errorf("%s is not the end of a commit", c.pos)
	}
	wal := app.Committed(number)
	if c.pos.Offset <= WALHeaderSize || len(wal) == 0 {
		return nil
	}
	frame := wal[c.pos.Offset-int64(c.cursor.header.frameSize()):][:WALFrameHeaderSize]
	if !bytes.Equal(frame, c.cursor.last[:]) {
		return fmt.Errorf("%s: the last frame is another", c.pos)
	}
	if c.cursor.sum1 != binary.BigEndian.Uint32(frame[16:]) || c.cursor.sum2 != binary.BigEndian.Uint32(frame[20:]) {
		return fmt.Errorf("%s: the cursor's checksum is another", c.pos)
	}
	return nil
}

// checkShadow verifies I1 of the segments that are new, and their bytes.
func (o *simOracle) checkShadow(c *capturer) error {
	shadow := newShadowWAL(o.s.mem, c.shadow.meta)
	for o.compared.compare(c.pos) < 0 {
		segments, err := c.shadow.segments(c.pos.Generation, o.compared.Index)
		if errors.Is(err, os.ErrNotExist) && o.compared.Index < c.pos.Index {
			o.compared = Pos{Generation: c.pos.Generation, Index: o.compared.Index + 1} // pruned meanwhile
			continue
		} else if err != nil {
			return err
		}
		for _, seg := range segments {
			if seg.offset < o.compared.Offset {
				continue
			}
			at := o.compared
			if seg.offset != at.Offset {
				return fmt.Errorf("segment at %d follows the one that ends at %d (I1)", seg.offset, at.Offset)
			}
			rc, err := shadow.open(at)
			if err != nil {
				return err
			}
			zr := newFrameReader(rc)
			b, err := io.ReadAll(zr)
			if err := errors.Join(err, zr.Close()); err != nil {
				return fmt.Errorf("segment %s: %w", at, err)
			}
			if int64(len(b)) != seg.end-seg.offset {
				return fmt.Errorf("segment %s holds %d bytes, not those up to %d", at, len(b), seg.end)
			}
			if err := o.isCommitted(at, b); err != nil {
				return fmt.Errorf("segment %s: %w", at, err)
			}
			o.compared.Offset = seg.end
		}
		if o.compared.Index < c.pos.Index {
			o.compared = Pos{Generation: c.pos.Generation, Index: o.compared.Index + 1}
		}
	}
	return nil
}

// isCommitted proves that bytes at a position are what the application
// committed, up to the end of a commit.
func (o *simOracle) isCommitted(pos Pos, b []byte) error {
	app := o.s.host.app
	end := pos.Offset + int64(len(b))
	numbers := o.generation(pos.Generation).numbers[pos.Index]
	for _, n := range numbers {
		if _, ok := app.StateAt(n, end); !ok {
			continue
		}
		wal := app.Committed(n)
		if n < app.Index()-40 || end <= WALHeaderSize || int64(len(wal)) >= end && bytes.Equal(wal[pos.Offset:end], b) {
			return nil
		}
	}
	return fmt.Errorf("bytes up to %d are not what was committed to wal %d", end, numbers)
}

// checkUpload verifies what arrives at a replica.
func (o *simOracle) checkUpload(pos Pos, z []byte) error {
	zr := newFrameReader(io.NopCloser(bytes.NewReader(z)))
	b, err := io.ReadAll(zr)
	if err := errors.Join(err, zr.Close()); err != nil {
		return fmt.Errorf("upload %s: %w", pos, err)
	}
	if err := o.isCommitted(pos, b); err != nil {
		return fmt.Errorf("upload %s: %w", pos, err)
	}
	return nil
}

func (o *simOracle) moment(replica int, pos Pos) {
	o.moments[replica] = append(o.moments[replica], simMoment{o.s.clock, pos})
}

// checkSnapshot is called for each snapshot that the library says it made.
func (o *simOracle) checkSnapshot(c *simReplica, info SnapshotInfo) error {
	if _, ok := c.snapshots[Pos{Generation: info.Generation, Index: info.Index}]; !ok {
		return fmt.Errorf("snapshot %s/%d was made, but is not there", info.Generation, info.Index)
	}
	return nil
}

// deleting is called before retention deletes a snapshot, or a generation.
func (o *simOracle) deleting(c *simReplica, generation string, index int) {
	o.s.count.deletions++
	if generation == o.s.db.Pos().Generation && index < 0 {
		o.s.failf("retention deletes the current generation")
	}
}

// checkAll restores from every replica, and compares.
func (s *sim) checkAll() {
	s.calm = true
	defer func() { s.calm = false }()
	for _, c := range s.replicas {
		if s.broken == nil {
			if err := s.checkReplica(c); err != nil {
				s.failf("replica %d: %w", c.id, err)
			}
		}
	}
}

func (s *sim) checkReplica(c *simReplica) error {
	names := c.names()
	if len(c.snapshots) == 0 {
		return nil
	}
	pos, err := s.restored(c, func(r *restorer) (Pos, error) {
		return r.run(bg, func() (*RestorePlan, error) { return PlanRestore(bg, c, time.Time{}) })
	})
	if err != nil {
		return fmt.Errorf("restore the newest state: %w", err)
	}
	if s.db != nil && s.db.mu.session != nil {
		r := s.db.Replicas[c.id]
		if at := r.Pos(); at.Generation == pos.Generation && at.compare(pos) > 0 {
			return fmt.Errorf("restored up to %s, the replica says that it has %s", pos, at)
		}
	}
	for _, name := range names {
		if err := s.checkGeneration(c, name); err != nil {
			return fmt.Errorf("generation %s: %w", name, err)
		}
	}
	return s.checkMoment(c)
}

// checkGeneration verifies the invariants of one generation, and restores it
// from the oldest snapshot.
func (s *sim) checkGeneration(c *simReplica, name string) error {
	var snapshots []int
	for _, pos := range sortedPos(c.snapshots, name) {
		snapshots = append(snapshots, pos.Index)
	}
	if len(snapshots) == 0 {
		return nil
	}
	var segments []walcheck.Segment
	last := snapshots[0]
	for _, pos := range sortedPos(c.segments, name) {
		segments = append(segments, walcheck.Segment{Index: pos.Index, Offset: pos.Offset, Data: c.segments[pos].data})
		last = max(last, pos.Index)
	}
	if _, err := walcheck.Generation(snapshots, segments); err != nil {
		return err
	}
	_, err := s.restored(c, func(r *restorer) (Pos, error) {
		return r.run(bg, func() (*RestorePlan, error) {
			infos, err := listGeneration(bg, c, name)
			if err != nil {
				return nil, err
			}
			return planIndex(infos, snapshots[0], last)
		})
	})
	if err != nil {
		return fmt.Errorf("restore from index %d up to %d: %w", snapshots[0], last, err)
	}
	return nil
}

// checkMoment restores a moment that retention must have kept.
func (s *sim) checkMoment(c *simReplica) error {
	oldest := s.clock.Add(-simRetention)
	a := s.moments[c.id]
	first := 0
	for first < len(a) && a[first].at.Before(oldest) {
		first++
	}
	if a = a[first:]; len(a) == 0 {
		return nil
	}
	s.moments[c.id] = a
	m := a[s.rng.IntN(len(a))]
	pos, err := s.restored(c, func(r *restorer) (Pos, error) {
		return r.run(bg, func() (*RestorePlan, error) { return PlanRestore(bg, c, m.at) })
	})
	if err != nil {
		return fmt.Errorf("restore the moment when it was at %s: %w", m.pos, err)
	}
	if pos != m.pos {
		return fmt.Errorf("restored %s of the moment when it was at %s", pos, m.pos)
	}
	return nil
}

// restored restores into a file in memory and compares it with the database at
// the position that was reached.
func (s *sim) restored(c *simReplica, run func(r *restorer) (Pos, error)) (Pos, error) {
	s.count.restores++
	name := s.path + "-restored"
	r := newRestorer(c, name, RestoreOptions{Logger: log.New(io.Discard, "", 0)})
	r.fsys = s.mem
	pos, err := run(r)
	if err != nil {
		return pos, err
	}
	f, err := s.mem.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return pos, err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, s.mem.Remove(name)); err != nil {
		return pos, err
	}
	size := s.host.app.PageSize
	got := fakeapp.State{Pages: uint32(len(b) / size)}
	for pgno := uint32(1); len(b) >= size; pgno++ {
		got.Content ^= fakeapp.PageSum(pgno, b[:size])
		b = b[size:]
	}
	numbers := s.generation(pos.Generation).numbers[pos.Index]
	for _, n := range numbers {
		if want, ok := s.host.app.StateAt(n, pos.Offset); ok && want == got {
			return pos, nil
		}
	}
	return pos, fmt.Errorf("restored %s of %d pages is not the database at that place of wal %d", pos, got.Pages, numbers)
}

// whereabouts tells where everybody is, for the trace.
func (s *sim) whereabouts() string {
	h := s.host
	at := fmt.Sprintf("host at %d+%d, backfilled %d, durable %d", h.app.Index(), h.mxFrame, h.backfilled, h.durable)
	if s.db != nil {
		at += "; captured " + s.db.Pos().String()
	}
	return at + "; "
}
