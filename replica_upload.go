package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxUpload bounds, in compressed bytes, one WAL segment on a replica, so that
// a failed upload repeats little. A larger captured segment goes as it is.
const maxUpload = 32 << 20

// uploadTo uploads until the replica has to, which was captured.
func (r *Replica) uploadTo(ctx context.Context, u *uploader, to Pos) error {
	for u.pos.compare(to) < 0 {
		if err := r.uploadNext(ctx, u, to); err != nil {
			return err
		}
	}
	return nil
}

// uploadNext joins captured segments of one index into one, and writes that.
func (r *Replica) uploadNext(ctx context.Context, u *uploader, to Pos) error {
	segments, err := r.db.shadow.segments(u.pos.Generation, u.pos.Index)
	if err != nil {
		return err
	}
	first := slices.IndexFunc(segments, func(s shadowSegment) bool { return s.offset >= u.pos.Offset })
	if first < 0 {
		if u.pos.Index >= to.Index {
			return fmt.Errorf("captured wal ends before %s", to)
		}
		// The index is needed until the replica has a frame of the next: its last
		// frame is how locate finds the place again.
		u.pos = Pos{Generation: u.pos.Generation, Index: u.pos.Index + 1}
		return nil
	}
	if segments[first].offset != u.pos.Offset {
		return fmt.Errorf("no captured segment begins at %s", u.pos)
	}
	segments = segments[first:]
	n, size := 0, int64(0)
	for n < len(segments) && (n == 0 || size+segments[n].size <= maxUpload) {
		if u.pos.Index == to.Index && segments[n].end > to.Offset {
			break // captured since
		}
		if !u.known && n > 0 || u.known && u.failed.pos == u.pos && segments[n].end > u.failed.end {
			break // see uploader.failed
		}
		size += segments[n].size
		n++
	}
	if err := r.db.shadow.verify(ctx, u.pos, segments[:n], false); errors.Is(err, errNotJoinable) {
		return r.abandonGeneration(ctx, u.pos, err)
	} else if err != nil {
		return err
	}
	body := joinSegments(r.db.shadow.sources(u.pos, segments[:n]))
	began := r.stampTime()
	info, err := r.client.WriteWALSegment(ctx, u.pos, body)
	rerr := body.readError()
	err = errors.Join(err, body.Close())
	if u.known {
		u.failed.pos, u.failed.end = u.pos, segments[n-1].end
	}
	switch {
	case isDamage(rerr):
		return r.abandonGeneration(ctx, u.pos, errors.Join(rerr, err))
	case err != nil:
		return sayOnce("write wal segment", u.pos.String(), err)
	case rerr != io.EOF:
		return fmt.Errorf("write segment %s: the client did not read it to its end", u.pos)
	}
	r.noteStamp(began, info.CreatedAt)
	r.count.segments.Add(1)
	r.count.bytes.Add(info.Size)
	if info.CreatedAt.After(u.stamp) {
		u.stamp = info.CreatedAt
	}
	u.pos.Offset = segments[n-1].end
	u.failed.pos = Pos{}
	r.need(u.pos)
	return nil
}

// abandonGeneration begins a new generation, since the shadow WAL does not
// yield what follows pos, and makes the caller start over with it.
func (r *Replica) abandonGeneration(ctx context.Context, pos Pos, cause error) error {
	err := fmt.Errorf("%w: %w", ErrGenerationChanged, cause)
	return errors.Join(err, r.db.newGeneration(ctx, pos.Generation, fmt.Sprintf("shadow wal is damaged behind %s: %v", pos, cause)))
}
