package litestream

import (
	"context"
	"errors"
	"fmt"
)

var _ StreamClient = (*DB)(nil)

// Stream returns a reader of the database's changes from pos on, for a follower
// in this process or behind a transport. So a DB is a StreamClient itself.
//
// If pos is of the current generation and what follows it is still held in the
// meta directory, the stream goes on from there, else its first record is a
// snapshot. When there is nothing to send yet the first record is a heartbeat.
// All records up to the position at the time of the call but the last have
// StreamRecordFlagPartial.
//
// Next returns io.EOF when the DB begins another generation, an error that
// matches ErrDBClosed when it is closed, ErrStreamTooSlow when the reader falls
// too far behind, and ctx's when that ends. No lock is held while the reader
// waits or reads. The error of Stream matches ErrNoGeneration before the first
// capture, and ErrFollower if the DB is a follower.
func (db *DB) Stream(ctx context.Context, pos Pos) (StreamReader, error) {
	return nil, fmt.Errorf("stream %s: %w", db.path, errors.New("not built yet"))
}
