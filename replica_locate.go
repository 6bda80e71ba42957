package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"example.com/litestream/internal/durable"
)

// locate finds out where the replica stands, and makes a snapshot if it has
// none of the generation. A replica that cannot be continued makes the DB begin
// a new generation: with a gap in it, the WAL behind the gap would look
// complete to a restore until a snapshot stands there. Nothing is written to a
// replica that another manager has taken over.
func (r *Replica) locate(ctx context.Context, u *uploader, target Pos) error {
	listed, err := listGenerationNames(ctx, r.client)
	if err == nil {
		err = r.checkLineage(ctx, listed)
	}
	if err != nil {
		return err
	}
	at, err := readReplicaPos(durable.Listing(ctx), r.client, target.Generation) // I4
	switch {
	case errors.Is(err, ErrNoSnapshots):
		return r.snapshotFirst(ctx, u)
	case err != nil:
		// The first time it may have been the way to the replica that broke.
		var damaged *damagedSegmentError
		if errors.As(err, &damaged) && u.damaged == damaged.pos {
			return r.startOver(ctx, target, err.Error())
		} else if damaged != nil {
			u.damaged = damaged.pos
		}
		return err
	}
	u.damaged = Pos{}
	fit, err := r.fits(at, target)
	if err != nil {
		return err
	}
	switch fit {
	case fitForeign:
		return r.startOver(ctx, target, "it holds what this database did not write")
	case fitTorn:
		return r.startOver(ctx, target, fmt.Sprintf("shadow wal is damaged before %s", at.pos))
	case fitGap:
		return r.startOver(ctx, target, fmt.Sprintf("what follows %s is no longer in the shadow wal", at.pos))
	}
	u.pos, u.known = at.pos, true
	r.need(at.pos)
	r.publish(at.pos)
	return nil
}

// startOver begins a new generation because of what the replica holds.
func (r *Replica) startOver(ctx context.Context, target Pos, reason string) error {
	if err := r.db.newGeneration(ctx, target.Generation, "replica "+r.Name()+": "+reason); err != nil {
		return err
	}
	return ErrGenerationChanged
}

// damagedSegmentError reports a segment on the replica that cannot be read to
// its end.
type damagedSegmentError struct {
	pos Pos
	err error
}

func (e *damagedSegmentError) Error() string {
	return fmt.Sprintf("read replica's segment %s: %v", e.pos, e.err)
}
func (e *damagedSegmentError) Unwrap() error { return e.err }

// replicaPos is where a replica stands in a generation.
type replicaPos struct {
	pos  Pos
	last [WALFrameHeaderSize]byte // header of the frame that ends there; zero at the start of an index
}

// readReplicaPos reads the position from the listings, and the end of the
// newest segment from the segment itself. Segments behind a missing index do
// not count.
func readReplicaPos(ctx context.Context, client ReplicaClient, generation string) (at replicaPos, err error) {
	snapshots, err := someSnapshots(ctx, client, generation)
	if err != nil {
		return at, err
	}
	segments, err := listWALSegments(ctx, client, generation)
	if err != nil {
		return at, err
	}
	start := Pos{Generation: generation, Index: snapshots[len(snapshots)-1].Index}
	last, n := lastInLine(segments, start.Index)
	if n == 0 {
		return replicaPos{pos: start}, nil
	}
	return readSegmentEnd(ctx, client, last)
}

// readSegmentEnd reads where the segment that begins at pos ends.
func readSegmentEnd(ctx context.Context, client ReplicaClient, pos Pos) (at replicaPos, err error) {
	var header walHeader
	open := func(pos Pos) (io.ReadCloser, error) {
		rc, err := client.WALSegmentReader(ctx, pos)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &damagedSegmentError{pos, err} // though it was listed
		} else if err != nil {
			return nil, fmt.Errorf("read replica's segment %s: %w", pos, err)
		}
		return rc, nil
	}
	if pos.Offset > 0 {
		rc, err := open(pos.Truncate())
		if err != nil {
			return at, err
		}
		if header, err = readHeader(rc); err != nil {
			return at, &damagedSegmentError{pos.Truncate(), err}
		}
	}
	rc, err := open(pos)
	if err != nil {
		return at, err
	}
	cur, err := readTail(rc, pos.Offset, header)
	if err != nil {
		return at, &damagedSegmentError{pos, err}
	}
	pos.Offset = cur.offset
	return replicaPos{pos: pos, last: cur.last}, nil
}

// lastInLine returns the newest segment that is reached from the start of an
// index without a missing index, and how many there are up to it. The segments
// are sorted.
func lastInLine(segments []WALSegmentInfo, index int) (last Pos, n int) {
	for _, seg := range segments {
		switch {
		case seg.Index < index:
			continue
		case n == 0 && (seg.Index != index || seg.Offset != 0),
			n > 0 && seg.Index == last.Index+1 && seg.Offset != 0,
			n > 0 && seg.Index > last.Index+1:
			return last, n
		}
		last = seg.Pos()
		n++
	}
	return last, n
}

// replicaFit tells whether a replica can be continued from the shadow WAL.
type replicaFit int

const (
	fitGood    replicaFit = iota
	fitGap                // what follows was pruned
	fitForeign            // it holds other frames than this database wrote
	fitTorn               // the shadow WAL cannot tell: a power loss tore it
)

// fits compares where the replica stands with what was captured. Equal frame
// headers at one place prove that everything before is equal (I3).
func (r *Replica) fits(at replicaPos, target Pos) (replicaFit, error) {
	if at.pos.compare(target) > 0 {
		return fitForeign, nil
	}
	segments, err := r.db.shadow.segments(at.pos.Generation, at.pos.Index)
	if errors.Is(err, fs.ErrNotExist) {
		if at.pos.Offset == 0 && at.pos.Index == target.Index && target.Offset == 0 {
			return fitGood, nil // nothing was captured of this index yet
		}
		return fitGap, nil
	} else if err != nil {
		return 0, err
	}
	if at.pos.Offset == 0 {
		return fitGood, nil
	}
	i := slices.IndexFunc(segments, func(s shadowSegment) bool { return s.end == at.pos.Offset })
	if i < 0 {
		return fitForeign, nil
	}
	pos := at.pos.Truncate()
	pos.Offset = segments[i].offset
	cur, err := r.db.shadow.readEnd(pos)
	if err != nil {
		var perr *fs.PathError
		if errors.As(err, &perr) && !errors.Is(err, fs.ErrNotExist) {
			return 0, err // it may be read another time
		}
		return fitTorn, nil
	}
	if cur.last != at.last {
		return fitForeign, nil
	}
	return fitGood, nil
}
