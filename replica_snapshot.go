package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"example.com/litestream/internal/durable"
)

// Snapshot writes a snapshot of the database, and what was captured up to it,
// to the replica. Syncs go on meanwhile. If the replica has one of the present
// WAL index, it is returned instead: a restore reads that index from its start
// anyway, and a younger snapshot of the same name would put the moments before
// it beyond reach. The error matches ErrNoGeneration before the first capture.
func (r *Replica) Snapshot(ctx context.Context) (info SnapshotInfo, err error) {
	for range maxGenerations {
		if info, err = r.snapshotOnce(ctx); !errors.Is(err, ErrGenerationChanged) {
			break
		}
	}
	if err != nil {
		return info, fmt.Errorf("snapshot to replica %q: %w", r.Name(), err)
	}
	return info, nil
}

func (r *Replica) snapshotOnce(ctx context.Context) (info SnapshotInfo, err error) {
	u, err := r.acquire(ctx)
	if err != nil {
		return info, err
	}
	before := r.count.snapshots.Load()
	var w *snapshotWriter
	if err = r.sync(ctx, u); err == nil { // without the pin, since it may take long
		switch {
		case !u.known:
			err = ErrNoGeneration
		case r.count.snapshots.Load() > before:
			info = r.lastSnapshot() // the sync began the generation with one
		default:
			w, err = r.beginSnapshot(ctx, u)
		}
	}
	if w != nil && w.first {
		// Without it nothing on the replica can be restored: nobody else may go on
		// before it is there (I4).
		u.known = false
		if info, err = w.write(ctx); err == nil {
			u.known = true
			r.publish(u.pos)
		}
		w = nil
	}
	u.known = u.known && err == nil
	r.release(u)
	if w == nil {
		return info, err
	}
	if info, stored, err := r.storedSnapshot(ctx, w.pos); err != nil || stored {
		return info, errors.Join(err, w.body.Close())
	}
	return w.write(ctx)
}

// storedSnapshot returns the snapshot that the replica has of pos's WAL index.
func (r *Replica) storedSnapshot(ctx context.Context, pos Pos) (info SnapshotInfo, ok bool, err error) {
	snapshots, err := r.snapshotsOf(durable.Listing(ctx), pos.Generation)
	if err != nil {
		return info, false, err
	}
	i := slices.IndexFunc(snapshots, func(s SnapshotInfo) bool { return s.Index == pos.Index })
	if i < 0 {
		return info, false, nil
	}
	return snapshots[i], true, nil
}

// snapshotFirst makes the snapshot that a generation begins with on the
// replica. No position is visible before it is durable (I4).
func (r *Replica) snapshotFirst(ctx context.Context, u *uploader) error {
	u.known = false
	w, err := r.beginSnapshot(ctx, u)
	if err != nil {
		return err
	}
	if _, err := w.write(ctx); err != nil {
		return err
	}
	u.known = true
	r.publish(u.pos)
	r.warnOutranked(ctx, u.pos.Generation)
	return nil
}

// warnOutranked tells a person if a restore of the latest state would choose
// another generation than the one that has just begun. Nothing on a replica but
// the times of its files says which one is the latest.
func (r *Replica) warnOutranked(ctx context.Context, generation string) {
	latest, err := FindLatestGeneration(ctx, r.client)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.logf("cannot tell whether generation %s is the latest: %v", generation, err)
	case latest != generation:
		r.logf("the clock was set back: files of generation %s are stamped later than now, and until then it is restored for the latest state, not %s", latest, generation)
	}
}

// snapshotWriter is a snapshot of which the WAL is on the replica already, as
// far as the pin.
type snapshotWriter struct {
	r     *Replica
	pos   Pos  // of the pin
	first bool // of its generation on the replica
	body  *snapshotStream
	began time.Time
	stamp time.Time // the latest of the segments
}

// beginSnapshot pins the database and uploads up to the pin. These segments
// come before the snapshot, which so is never newer than the segments beside
// it: every moment since it was created can be restored by cutting its index.
func (r *Replica) beginSnapshot(ctx context.Context, u *uploader) (*snapshotWriter, error) {
	pin, err := r.db.pinSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	// A generation may have begun since locate.
	if _, err := r.db.lineage.Load().accept(r.Name(), nil, pin.pos.Generation); err != nil {
		return nil, errors.Join(err, pin.end())
	}
	w := &snapshotWriter{r: r, pos: pin.pos, body: pin.stream(ctx), began: time.Now()}
	if !u.known || u.pos.Generation != pin.pos.Generation {
		u.pos, u.stamp, w.first = pin.pos.Truncate(), time.Time{}, true
	}
	r.need(u.pos)
	if err := r.uploadTo(ctx, u, pin.pos); err != nil {
		return nil, errors.Join(err, w.body.Close())
	}
	w.stamp = u.stamp
	return w, nil
}

// stampPrecision is how far the times that a replica gives its files may be off
// without a clock having been set: some are of whole seconds, of two on FAT.
const stampPrecision = 2 * time.Second

// write writes the snapshot, and deletes it again if it is stamped as older than
// the segments beside it: a restore up to a moment in between would leave those
// out.
func (w *snapshotWriter) write(ctx context.Context) (info SnapshotInfo, err error) {
	r := w.r
	body := &generationBody{Reader: w.body, db: r.db, generation: w.pos.Generation}
	began := r.stampTime()
	info, err = r.client.WriteSnapshot(ctx, w.pos.Generation, w.pos.Index, body)
	if body.over {
		err = errors.Join(ErrGenerationChanged, err)
	} else if err == nil && !w.body.ended() {
		err = errors.New("the client did not read it to its end")
	}
	if err = errors.Join(err, w.body.Close()); err == nil && info.CreatedAt.Add(stampPrecision).Before(w.stamp) {
		err = errors.Join(
			fmt.Errorf("the replica's clock was set back: it is stamped %s, and wal that belongs to it %s", formatMoment(info.CreatedAt), formatMoment(w.stamp)),
			r.client.DeleteSnapshot(ctx, info.Generation, info.Index))
	}
	if err != nil {
		return info, sayOnce("write snapshot", w.pos.Truncate().String(), err)
	}
	r.noteStamp(began, info.CreatedAt)
	r.count.snapshots.Add(1)
	r.count.bytes.Add(info.Size)
	r.noteSnapshot(info)
	r.logf("snapshot %s/%s: %d bytes in %s", info.Generation, FormatIndex(info.Index), info.Size, time.Since(w.began).Round(time.Millisecond))
	return info, nil
}

// generationBody ends in an error if its generation was given up meanwhile:
// nobody needs the snapshot any more.
type generationBody struct {
	io.Reader
	db         *DB
	generation string
	over       bool
}

func (b *generationBody) Read(p []byte) (int, error) {
	if b.db.Pos().Generation != b.generation {
		b.over = true
		return 0, ErrGenerationChanged
	}
	return b.Reader.Read(p)
}
